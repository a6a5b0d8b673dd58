import io

import pytest
from rich.console import Console

from parity.report import print_report
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


def test_names_are_not_taken_for_markup_and_a_row_without_numbers_has_none():
    row = Row("c[bold]", "k[/red]", "r[b]", "q", "t[red]x", None, None, Status.FAILED, "at [0, 1]")
    text = printed(Report(rows=[row]))
    for part in (
        "c[bold]  ",
        "t[red]x (q) ",
        "at [0, 1]",
        "c[bold] · k[/red] · r[b]",
        "FAIL: 1 case; 0 of 1 quantity of the prototype matched",
    ):
        assert part in text
    assert "measured" not in text.partition("Failed")[2]
