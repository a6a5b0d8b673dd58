"""Benchmark results as a page and as tables: fits, speed-ups, and what a broken file is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from parity.cli import app
from parity.errors import InputError
from parity.report import write_performance, write_scaling
from parity.report.bench import panels_of, read_bench

DOCS = Path(__file__).parents[3] / "docs"


def entry(side: str, length: int, seconds: float, peak: int, k: int = 3) -> dict[str, Any]:
    extra = {"algorithm": "eagle3", "length": length, "ttt_steps": k, "dtype": "fp32", "threads": 1, "device": "cpu"}
    extra |= {"side": side, "tokens_per_second": length / seconds, "peak_bytes": peak, "fraction_of_gemm_peak": 0.5}
    return {"fullname": f"{side}-{length}", "stats": {"min": seconds}, "extra_info": extra}


def document(*more: dict[str, Any], cpu: str = "<a processor>") -> dict[str, Any]:
    """The original grows with T^2, the port with T."""
    lengths = (1024, 2048, 4096)
    entries = [entry("original", n, 4.0 * (n / 1024) ** 2, n * n) for n in lengths]
    entries += [entry("port", n, 1.0 * n / 1024, 1000 * n) for n in lengths]
    return {"benchmarks": [*entries, *more], "machine_info": {"parity": {"cpu": cpu}}}


def saved(content: dict[str, Any], file: Path) -> Path:
    file.write_text(json.dumps(content))
    return file


def test_panels_name_the_exponents_and_how_straight_the_time_over_steps_is(tmp_path: Path) -> None:
    more = [entry("port", 1024, seconds, 1, k) for k, seconds in ((1, 0.5), (5, 1.5), (7, 2.2))]
    time, memory, steps = panels_of(read_bench([saved(document(*more), tmp_path / "b.json")])[0])
    for panel in (time, memory):
        assert panel.remarks[0].startswith("original: T^2 from 1,024 on, T^2 over")
        assert panel.remarks[1].startswith("port: T^1 from 1,024 on")
        assert "4,096" in panel.drawing
    assert steps.title.endswith("T 1024")
    assert steps.remarks == ["port: 0.28 s a step, at most 8 % off a straight line"]


def test_the_command_writes_the_page_with_every_shape_and_escapes(tmp_path: Path) -> None:
    bench, out = saved(document(), tmp_path / "b.json"), tmp_path / "out.html"
    result = CliRunner().invoke(app, ["plot", str(bench), "--output", str(out)])
    assert result.exit_code == 0, result.output
    page = out.read_text()
    assert page.startswith("<!doctype html>")
    assert page.count('data-label="s per step"') == 6
    assert page.count("<svg") == 2
    assert "&lt;a processor&gt;" in page
    assert "<a processor>" not in page


def test_the_tables_have_every_shape_and_speedups_of_the_same_shape_only(tmp_path: Path) -> None:
    write_performance([saved(document(), tmp_path / "b.json")], tmp_path / "p.md")
    page = (tmp_path / "p.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 6
    assert len({row.count("|") for row in rows}) == 1
    assert "| 2048 | 3 | port | 2 | 1,024 | 0.00205 | 0.5 | 8 |  |  |" in rows
    assert "Machine: cpu <a processor>" in page
    assert any(line.startswith("- Memory of eagle3, fp32, 1 thread, port: T^1") for line in page.splitlines())
    assert (DOCS / "performance.md").read_text().partition("Machine:")[0] == page.partition("Machine:")[0]


def test_files_of_one_machine_become_one(tmp_path: Path) -> None:
    first, more = saved(document(), tmp_path / "b.json"), tmp_path / "more.json"
    saved({**document(), "benchmarks": [entry("port", 8192, 8.0, 8_192_000)]}, more)
    assert [t.length for t in read_bench([first, more])[0]] == [1024, 1024, 2048, 2048, 4096, 4096, 8192]
    saved(document(cpu="another"), more)
    with pytest.raises(InputError, match=r"more\.json: machine_info: found another cpu"):
        read_bench([first, more])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.clear(), "benchmarks: found {}, expected Field required"),
        (lambda d: d["benchmarks"].clear(), "benchmarks: found [], expected List should have at least 1 item"),
        (lambda d: d["benchmarks"][0]["extra_info"].pop("side"), "benchmarks.0.extra_info.side: found "),
        (lambda d: d["benchmarks"][0].pop("stats"), "benchmarks.0.stats.min: found "),
        (lambda d: d["benchmarks"][0]["stats"].update(min=0.0), "stats.min: found 0.0, expected Input should be great"),
        (lambda d: d["benchmarks"][0]["stats"].update(min=float("nan")), "stats.min: found nan, expected Input should"),
        (lambda d: d.update(machine_info={"parity": 3}), "machine_info.parity: found 3, expected Input should be"),
    ],
)
def test_what_is_no_benchmark_of_steps_is_refused(tmp_path: Path, change: Any, named: str) -> None:
    content = document()
    change(content)
    with pytest.raises(InputError, match=r"broken\.json") as caught:
        write_scaling([saved(content, tmp_path / "broken.json")], tmp_path / "out.html")
    assert named in str(caught.value)
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize("text", [None, "", "[]", "\x80"])
def test_what_is_no_json_of_benchmarks_is_refused(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"bench\.json: file: found .*, expected a "):
        read_bench([file])
