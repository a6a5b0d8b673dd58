from __future__ import annotations

import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from parity.report import render_html, write_html
from parity.verdict import Curve, Deviation, GradientFlow, Report, Row, Skip, Speed, Status

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>"
VOID = {"meta", "wbr", "line", "rect", "circle", "polyline", "img", "br"}


class Page(HTMLParser):
    """Collects tags, ids and link targets; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            self.ids += [value or ""] if name == "id" else []
            self.links += [value or ""] if name == "href" and tag == "a" else []
            self.loaded += [value or ""] if name in ("src", "srcset", "data") or (name == "href" and tag != "a") else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def visible(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", html.replace("<wbr>", "")))


def test_the_page_is_well_formed_and_every_link_leads_somewhere(demo_report: Report) -> None:
    page = Page(render_html(demo_report))
    assert len(page.ids) == len(set(page.ids))
    assert page.links
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)


def test_the_page_loads_nothing(demo_report: Report) -> None:
    html = render_html(demo_report)
    assert Page(html).loaded == []
    assert not re.search(r"https?://|@import|url\(", html)
    assert Page(html).tags.count("script") == 1


def test_every_failed_row_is_shown_with_detail_and_hint(demo_report: Report) -> None:
    text = visible(render_html(demo_report))
    failed = [row for row in demo_report.rows if row.status is Status.FAILED]
    assert failed
    for row in failed:
        for part in (row.check, row.case, row.run, row.tensor, row.detail, row.hint):
            assert part in text


def test_hundreds_of_failures_are_collapsed_but_present() -> None:
    rows = [Row("gradients", "case", "port", "gradient", f"tensor_{i}", 1.0, 0.1, Status.FAILED) for i in range(300)]
    html = render_html(Report(rows=rows))
    assert "292 more failures of case" in html
    assert all(f"tensor_{i}" in visible(html) for i in range(300))


def test_hostile_names_are_escaped() -> None:
    h = HOSTILE
    report = Report(
        rows=[Row(h, h, h, h, h, 2.0, 1.0, s, h, h) for s in (Status.FAILED, Status.BLOCKED, Status.PASSED)],
        skips=[Skip(h, h, h, h)],
        curves=[Curve(h, h, q, (1.0, 2.0)) for q in ("loss", h)] + [Curve(h, h + "2", "loss", (1.0, 3.0))],
        gradient_flow=[GradientFlow(h, h, h, True, None, 0.0)],
        speeds=[Speed(h, h, h, (1.0,), (1.0,), 1, 1, 1.0, (1.0, 1.0), 1)],
        deviations=[Deviation(h, h, h, h, h)],
        environment={h: h, "nested": {h: [h]}},
        notes=[h],
        baseline=h,
    )
    html = render_html(report, title=h)
    page = Page(html)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert "alert('x')" not in html
    assert h in visible(html)


@pytest.mark.parametrize(
    ("report", "word"),
    [
        (Report(), "FAIL: no comparisons"),
        (
            Report(rows=[Row("a", "b", "c", "d", "e", 1.0, 2.0, Status.PASSED)]),
            "PASS: 1 comparison, all within tolerance",
        ),
        (
            Report(rows=[Row("a", "b", "c", "d", "e", 1.0, 2.0, Status.BLOCKED)]),
            "FAIL: 0 of 1 comparison failed, 1 blocked",
        ),
    ],
)
def test_the_verdict_stands_at_the_top(report: Report, word: str) -> None:
    text = visible(render_html(report).partition("<nav")[0])
    assert word in text
    assert ("verdict passed" in render_html(report)) is report.passed


def test_a_report_of_nothing_says_so_in_every_section() -> None:
    text = visible(render_html(Report()))
    for sentence in ("Nothing was compared", "No curves", "not recorded", "not measured", "Nothing was skipped"):
        assert sentence in text


def test_values_that_are_not_finite_are_spelled_out() -> None:
    rows = [Row("a", "b", "c", "d", f"t{v}", v, 1.0, Status.FAILED) for v in (math.nan, math.inf, None)]
    curves = [Curve("b", "prototype", "loss", (math.nan, 1.0)), Curve("b", "port", "loss", (math.inf,))]
    speeds = [Speed("b", "p", "q", (), (), 0, 0, math.nan, (math.nan, math.inf), 0)]
    text = visible(render_html(Report(rows=rows, curves=curves, speeds=speeds)))
    assert "ratio NaN" in text
    assert "ratio inf" in text
    assert "port has 1 value, prototype has 2" in text
    assert "port: 1 value is not finite, first at 0" in text
    assert "nan" not in re.findall(r'="([^"]*)"', render_html(Report(rows=rows, curves=curves, speeds=speeds)))


def test_dead_parameters_are_marked_unless_the_prototype_has_them_too(demo_report: Report) -> None:
    html = render_html(demo_report)
    flow = html.partition('id="flow"')[2].partition('id="speed"')[0]
    assert flow.count(">dead</td>") == 4
    assert "dead, as in prototype" in flow


def test_the_curve_of_an_equal_run_has_no_difference_chart() -> None:
    curves = [Curve("a", run, "loss", (1.0, 2.0)) for run in ("port", "prototype")]
    text = render_html(Report(curves=curves))
    assert "exactly equal at every micro-batch (2)" in text
    assert text.count('class="chart"') == 1


def test_a_lone_surrogate_in_a_name_does_not_stop_the_page(tmp_path: Path, demo_report: Report) -> None:
    write_html(replace(demo_report, notes=["file\udcff"]), tmp_path / "page.html")
    assert "file?" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_zero_comparisons_point_to_the_skips_when_there_are_any() -> None:
    skipped = visible(render_html(Report(skips=[Skip("throughput", "k3", "no GPU", "use a machine with one")])))
    assert "The skipped checks at the end say what each of them needs." in skipped
    assert "use a machine with one" in skipped


@pytest.mark.parametrize(("measured", "words"), [(0.0, "exactly 0"), (2.0, "2 times what is allowed"), (None, "worst")])
def test_the_worst_comparison_is_put_in_words(measured: float | None, words: str) -> None:
    status = Status.FAILED if measured else Status.PASSED
    html = render_html(Report(rows=[Row("logits", "k3", "port", "logits", "t", measured, 1.0, status)]))
    assert words in visible(html.partition("<nav")[0].partition('id="verdict"')[2])
