"""Benchmark results as a page: fitted exponents, speed-ups, and what a broken file is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from parity.cli import app
from parity.errors import InputError
from parity.report.bench_file import read_all, read_bench
from parity.report.scaling import (
    exponent,
    length_panels,
    render_performance,
    render_scaling,
    speedups,
    step_panels,
    write_scaling,
)


def entry(side: str, length: int, seconds: float, peak: int, k: int = 3, algorithm: str = "eagle3") -> dict[str, Any]:
    extra = {
        "algorithm": algorithm,
        "length": length,
        "ttt_steps": k,
        "dtype": "fp32",
        "threads": 1,
        "device": "cpu",
        "side": side,
        "tokens_per_second": length / seconds,
        "peak_bytes": peak,
        "flops": 100,
        "useful_flops": 80,
        "fraction_of_gemm_peak": 0.5,
    }
    return {"fullname": f"{side}-{length}", "stats": {"min": seconds}, "extra_info": extra}


@pytest.fixture
def document() -> dict[str, Any]:
    """The original grows with T^2, the port with T."""
    lengths = (1024, 2048, 4096)
    entries = [entry("original", n, 4.0 * (n / 1024) ** 2, n * n) for n in lengths]
    entries += [entry("port", n, 1.0 * n / 1024, 1000 * n) for n in lengths]
    return {"benchmarks": entries, "machine_info": {"parity": {"cpu": "<a processor>"}}}


@pytest.fixture
def bench(document: dict[str, Any], tmp_path: Path) -> Path:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(document))
    return file


def test_the_exponent_is_the_slope_on_log_axes() -> None:
    assert exponent([(x, 7 * x**1.5) for x in (2.0, 4.0, 16.0)]) == pytest.approx(1.5)
    assert exponent([(2.0, 1.0)]) is None
    assert exponent([]) is None


def test_panels_name_both_exponents(bench: Path) -> None:
    time, memory = length_panels(read_bench(bench).timings)
    for panel in (time, memory):
        assert panel.remarks[0].startswith("original: T^2 from 1,024 on")
        assert panel.remarks[1].startswith("port: T^1 from 1,024 on")
        assert panel.chart.count("<polyline") == 2
        assert "4,096" in panel.chart


def test_speedups_are_taken_on_the_same_shape_only(bench: Path, document: dict[str, Any]) -> None:
    timings = read_bench(bench).timings
    port = next(timing for timing in timings if timing.side == "port" and timing.length == 2048)
    assert speedups(port, timings) == {"original": 8.0}
    assert speedups(port, [port]) == {}


def test_time_over_steps_says_how_straight_it_is(document: dict[str, Any], tmp_path: Path) -> None:
    document["benchmarks"] += [entry("port", 1024, seconds, 1, k) for k, seconds in ((1, 0.5), (5, 1.5), (7, 2.2))]
    file = tmp_path / "steps.json"
    file.write_text(json.dumps(document))
    (panel,) = step_panels(read_bench(file).timings)
    assert panel.title.endswith("T 1024")
    remark = next(remark for remark in panel.remarks if remark.startswith("port"))
    assert "s a step" in remark


def test_the_page_has_every_shape_and_escapes(bench: Path) -> None:
    page = render_scaling(read_bench(bench))
    assert page.count('<td class="name" data-label="shape">') == 6
    assert "&lt;a processor&gt;" in page.replace("<wbr>", "")
    assert "<a processor>" not in page


def test_the_command_writes_it(bench: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plot", str(bench), "--output", str(tmp_path / "out.html")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>")


def test_the_markdown_page_is_a_table_with_every_shape(bench: Path) -> None:
    page = render_performance(read_bench(bench))
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 6
    assert len({row.count("|") for row in rows}) == 1
    assert "| 2048 | 3 | port | 2 | 1,024 | 0.00205 | 0.5 | 8 |  |  |" in rows
    assert "cpu <a processor>" in page
    assert any(line.startswith("- Memory of eagle3, fp32, 1 thread, port: T^1") for line in page.splitlines())


def test_files_of_one_machine_become_one(bench: Path, document: dict[str, Any], tmp_path: Path) -> None:
    document["benchmarks"] = [entry("port", 8192, 8.0, 8_192_000)]
    more = tmp_path / "more.json"
    more.write_text(json.dumps(document))
    assert [timing.length for timing in read_all([bench, more]).timings] == [1024, 1024, 2048, 2048, 4096, 4096, 8192]
    document["machine_info"]["parity"]["cpu"] = "another"
    more.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"more\.json: machine_info: found another cpu"):
        read_all([bench, more])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.clear(), "KeyError"),
        (lambda d: d["benchmarks"].clear(), "found none"),
        (lambda d: d["benchmarks"][0]["extra_info"].pop("side"), "original-1024: found no 'side'"),
        (lambda d: d["benchmarks"][0].pop("stats"), "found no 'stats'"),
        (lambda d: d["benchmarks"][0]["stats"].update(min=0.0), "0.0 seconds"),
    ],
)
def test_what_is_no_benchmark_of_steps_is_refused(
    document: dict[str, Any], tmp_path: Path, change: Any, named: str
) -> None:
    change(document)
    file = tmp_path / "broken.json"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"broken\.json") as caught:
        write_scaling([file], tmp_path / "out.html")
    assert named in str(caught.value)
    assert not (tmp_path / "out.html").exists()
