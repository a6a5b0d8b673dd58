"""Benchmark results as tables: fits, speed-ups, and what a broken file is told."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.tables import growth, main, markdown, read_bench
from parity.errors import InputError

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def entry(side, length, seconds, peak, k=3):
    extra = {"algorithm": "eagle3", "length": length, "ttt_steps": k, "dtype": "fp32", "threads": 1, "device": "cpu"}
    extra |= {"side": side, "tokens_per_second": length / seconds, "peak_bytes": peak, "fraction_of_gemm_peak": 0.5}
    return {"fullname": f"{side}-{length}", "stats": {"min": seconds}, "extra_info": extra}


def document(*more, cpu="a processor"):
    """The original grows with T^2, the port with T."""
    lengths = (1024, 2048, 4096)
    entries = [entry("original", n, 4.0 * (n / 1024) ** 2, n * n) for n in lengths]
    entries += [entry("port", n, 1.0 * n / 1024, 1000 * n) for n in lengths]
    return {"benchmarks": [*entries, *more], "machine_info": {"parity": {"cpu": cpu}}}


def saved(content, file):
    file.write_text(json.dumps(content))
    return file


def test_growth_is_exponents_over_lengths_and_how_straight_the_time_over_steps_is(tmp_path):
    more = [entry("port", 1024, seconds, 1, k) for k, seconds in ((1, 0.5), (5, 1.5), (7, 2.2))]
    said = list(growth(read_bench([saved(document(*more), tmp_path / "b.json")])[0]))
    where = "of eagle3, fp32, 1 thread"
    assert [line.partition(" from")[0] for line in said[:4]] == [
        *(f"Time {where}, {side}: T^{n}" for side, n in (("original", 2), ("port", 1))),
        *(f"Memory {where}, {side}: T^{n}" for side, n in (("original", 2), ("port", 1))),
    ]
    assert said[4:] == ["Time of eagle3 over TTT steps, T 1024, port: 0.28 s a step, at most 8 % off a straight line"]


def test_the_tables_have_every_shape_and_speedups_of_the_same_shape_only(tmp_path):
    page = markdown(*read_bench([saved(document(), tmp_path / "b.json")]))
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 6
    assert len({row.count("|") for row in rows}) == 1
    assert "| 2048 | 3 | port | 2 | 1,024 | 0.00205 | 0.5 | 8 |  |  |" in rows
    assert page.startswith("Machine: cpu a processor\n\n## eagle3, fp32, 1 thread\n\n| T |")
    assert "\n\n## How it grows\n\n- Time of eagle3" in page


def test_they_are_printed_or_take_the_place_of_a_page_s_numbers(tmp_path, monkeypatch, capsys):
    bench, page = saved(document(), tmp_path / "b.json"), tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    for words, code in (([], 0), (["--into", str(page)], 0), (["--into", str(tmp_path)], 2)):
        monkeypatch.setattr(sys, "argv", ["tables", str(bench), *words])
        assert main() == code
    said = capsys.readouterr()
    assert page.read_text() == PAGE.read_text().partition("Machine:")[0] + said.out
    assert said.err.startswith(f"error: {tmp_path}: --into: found no such file")


def test_files_of_one_machine_become_one(tmp_path):
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
def test_what_is_no_benchmark_of_steps_is_refused(tmp_path, change, named):
    content = document()
    change(content)
    with pytest.raises(InputError, match=r"broken\.json") as caught:
        read_bench([saved(content, tmp_path / "broken.json")])
    assert named in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "[]", "\x80"])
def test_what_is_no_json_of_benchmarks_is_refused(text, tmp_path):
    file = tmp_path / "bench.json"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"bench\.json: file: found .*, expected a "):
        read_bench([file])
