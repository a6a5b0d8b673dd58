import io
from dataclasses import replace

import pytest
from rich.console import Console

from parity.differences import Difference, Ledger
from parity.report import print_report
from parity.run import KitReport
from parity.verdict import Report, Row, Status

TOLD = (
    "forward · eagle3_fp32_k3 · port against prototype",
    "t2 (forward): measured 1.59, allowed 1, ratio 1.59",
    "largest at [1, 17, 203]: 2.417603 against 0.829114",
    "hint: layers.0.mlp: its inputs agree",
    "gradients: 3 in eagle3_fp32_k3, follows from forward",
    "t2 (curve): measured NaN",
    "Not applicable (3)",
    "float32: compared directly: precision and converted (port and reference; eagle3_fp32_k3, hass_bf16_k3 and third)",
    "no checkout was given; to run it: pass --prototype DIR",
    "own-kv",
    "a note",
)


def printed(report, width=110):
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width))
    return stream.getvalue()


def test_everything_that_is_not_a_pass_is_told(demo):
    text = " ".join(printed(demo).split())
    assert [words for words in TOLD if words not in text] == []


@pytest.mark.parametrize("width", [80, 200])
def test_nothing_but_the_verdict_is_wider_than_the_console(demo, width):
    *lines, last = printed(demo, width).splitlines()
    assert max(map(len, lines)) <= width
    assert last == demo.verdict_line()
    assert any(line.split()[:4] == ["chain", "speculators", "2", "2"] for line in lines)


def test_what_is_left_unexplained_is_printed_once():
    """Blocked rows are not printed one by one: the ledger has them."""
    row = Row("loss", "one", "port", "loss", "mb0.loss", 2.0, 1.0, Status.FAILED, "3.0 against 1.0")
    later = replace(row, check="gradients", quantity="gradient", tensor="mb0.grad", detail="5.0 against 4.0")
    report = Report(rows=[row, later.following("loss")])
    lines = [
        Difference(each.check, each.quantity, each.tensor, 1.0, 2.0, 2.0, True, True, {}, each.detail)
        for each in (row, later)
    ]
    report.ledgers.append(Ledger("one", "port", {}, tuple(lines)))
    text = printed(report).partition("Failed (1)")[2]
    assert [text.count(word) for word in ("mb0.loss", "3.0 against 1.0", "mb0.grad", "5.0 against 4.0")] == [1, 1, 1, 1]
    assert "2 unexplained, 1 of them under Failed\n" in text.replace(" \n", "\n")


def test_a_file_has_no_edge(demo, capsys, monkeypatch):
    """Nothing is cut or folded where the output is no terminal; a width that is asked for counts."""
    demo.rows[0] = replace(demo.rows[0], tensor=f"{'layers.0.' * 20}weight", measured=0.9)
    for columns in (None, 80):
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns:
            monkeypatch.setenv("COLUMNS", str(columns))
        print_report(demo)
        lines = capsys.readouterr().out.splitlines()
        whole = [line for line in lines if demo.rows[0].tensor in line or "blocked (3)" in line]
        assert len(whole) == (1 if columns else 2)
        assert ("…" in "".join(lines)) is bool(columns)
        assert max(map(len, lines[:-1])) <= (columns or 300)  # no line is filled up
        assert columns or any(skip.reason in line and skip.remedy in line for skip in demo.skips for line in lines)
    assert demo.rows[0].tensor in str(KitReport(rows=demo.rows))


def test_names_are_not_taken_for_markup_and_a_row_without_numbers_has_none():
    row = Row("c[bold]", "k[/red]", "r[b]", "q", "t[red]x", None, None, Status.FAILED, "at [0, 1]")
    text = printed(Report(rows=[row]))
    for part in (
        "c[bold]  ",
        "t[red]x (q)\n",
        "at [0, 1]",
        "c[bold] · k[/red] · r[b]",
        "FAIL: 1 case; 0 of 1 quantity of the prototype matched",
    ):
        assert part in text
    assert "measured" not in text.partition("Failed")[2]
