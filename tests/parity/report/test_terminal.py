from __future__ import annotations

import io

import pytest
from rich.console import Console

from parity.report import print_report
from parity.verdict import Report, Row, Status


def printed(report: Report, width: int = 100) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width))
    return stream.getvalue()


def test_failures_skips_and_blocked_rows_are_told(demo_report: Report) -> None:
    text = printed(demo_report)
    for part in (
        "logits · eagle3_fp32_k5 · port",
        "step2.logits (logits): measured 1.59, allowed 4e-06, ratio 397,122",
        "largest at [1, 17, 203]: 2.417603 against 0.829114",
        "hint: steps 0 and 1 agree",
        "gradients: 14 in eagle3_fp32_k5, blocked by logits",
        "no checkout of the prototypes was given",
        "to run it: pass --prototypes PATH",
        "own-position-kv, unshifted-mask",
    ):
        assert part in text
    assert text.splitlines()[-1] == "FAIL: 2 of 1,008 comparisons failed, 62 blocked by an earlier failure"


@pytest.mark.parametrize("width", [80, 100, 200])
def test_nothing_is_wider_than_the_console(demo_report: Report, width: int) -> None:
    assert max(len(line) for line in printed(demo_report, width).splitlines()) <= width
    assert "reference" in printed(demo_report, width)


def test_nothing_compared_is_a_failure() -> None:
    assert printed(Report()).strip() == "FAIL: 0 comparisons. Nothing was compared, so nothing was shown."


def test_a_pass_names_the_closest_call() -> None:
    rows = [Row("logits", "k3", "port", "logits", name, m, 1.0, Status.PASSED) for name, m in (("a", 0.2), ("b", 0.4))]
    line = "PASS: 2 comparisons, all within tolerance; the worst used 0.4 of its tolerance (logits, k3, b)"
    assert line in printed(Report(rows=rows))


def test_names_are_not_taken_for_markup() -> None:
    row = Row("c[bold]", "k[/red]", "r", "q", "t[red]x", 2.0, 1.0, Status.FAILED, "at [0, 1]")
    assert "t[red]x (q)" in printed(Report(rows=[row]))
    assert "at [0, 1]" in printed(Report(rows=[row]))


def test_a_row_without_numbers_is_printed_with_its_reason() -> None:
    row = Row("keys", "k", "r", "keys", "fc.weight", None, None, Status.FAILED, "missing in the port")
    text = printed(Report(rows=[row]))
    assert "fc.weight (keys)" in text
    assert "missing in the port" in text
    assert "measured –" not in text
