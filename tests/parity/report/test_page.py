import math
import re
from html import unescape
from html.parser import HTMLParser

import pytest

from parity.report.page import render_html, write_html
from parity.verdict import Against, Curve, Deviation, GradientFlow, Report, Row, Skip, Speed, Status
from tests.parity.report.conftest import build_report

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)> $\\frac{"
VOID = {"meta", "wbr", "img", "br"}
TOLD = (
    *("float32: compared directly", "pass --prototype DIR", "own-kv", "Note: a note", "this runport", "deepx yes"),
    *(
        "reference3.782712,000",
        "port1.417261,0002.68 (2.5 to 2.8)",
        "port: at most 1.9e-06 apart, relative",
        "its path to the loss is cut",
    ),
)
LOADING = {"src", "srcset", "data"}


class Page(HTMLParser):
    """Collects tags and attributes by name; fails on tags that do not nest and on handlers."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.open = []
        self.values = {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open += [tag] if tag not in VOID else []
        for name, value in attrs:
            assert not name.startswith("on")
            self.values.setdefault(name if name != "href" or tag == "a" else "src", []).append(value or "")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def visible(html):
    return unescape(re.sub(r"<[^>]+>", "", html.replace("<wbr>", "")))


@pytest.fixture(scope="module")
def html():
    """The page of the report that has everything."""
    return render_html(build_report())


def test_the_page_is_well_formed_loads_nothing_and_every_link_leads_somewhere(html):
    page = Page(html)
    ids, links = page.values["id"], page.values["href"]
    assert len(ids) == len(set(ids))
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert not LOADING & page.values.keys()
    assert not re.search(r"https?://|@import|url\(", html)
    assert page.tags.count("script") == 1


def test_the_verdict_stands_at_the_top(html):
    top = visible(html).partition("Passed of compared")[0]
    assert build_report().verdict_line() in top
    assert "Start with check forward of eagle3_fp32_k3 (port)" in top
    assert "The worst error is NaN times what is allowed: t2 in check curve of hass_bf16_k3 (port)" in top


def test_every_failed_row_is_shown_with_detail_and_hint(html):
    text = visible(html.partition('id="failures"')[2].partition('id="curves"')[0])
    failed = [row for row in build_report().rows if row.status is Status.FAILED]
    assert len(failed) == 2
    for row in failed:
        for part in (row.check, row.case, row.run, row.tensor, row.detail, row.hint):
            assert part in text
    assert "gradients: 3 in eagle3_fp32_k3, follows from forward" in text


def test_everything_a_report_holds_is_on_the_page(html):
    text = visible(html)
    assert [words for words in TOLD if words not in text] == []


def test_hundreds_of_failures_are_folded_but_present():
    rows = [Row("gradients", "case", "port", "gradient", f"tensor_{i}", 1.0, 0.1, Status.FAILED) for i in range(300)]
    text = visible(render_html(Report(rows=rows)))
    assert "292 more failures" in text
    assert all(f"tensor_{i}" in text for i in range(300))


def test_hostile_names_are_escaped():
    h = HOSTILE
    report = Report(
        rows=[Row(h, h, h, h, h, 2.0, 1.0, status, h, h) for status in Status],
        skips=[Skip(h, h, h, h)],
        curves=[Curve(h, h, q, (1.0, 2.0)) for q in ("loss", h)] + [Curve(h, h + "2", "loss", (1.0, 3.0))],
        gradient_flow=[GradientFlow(h, h, h, True, None, 0.0)],
        speeds=[Speed(h, h, h, (1.0,), (1.0,), 1, 1, 1.0, (1.0, 1.0), 1)],
        deviations=[Deviation(h, h, h, h, h)],
        environment={h: h, "nested": {h: [h]}},
        notes=[h],
        baseline=h,
    )
    html = render_html(report)
    page = Page(html)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert "alert('x')" not in html
    assert h in visible(html)


def test_a_report_of_nothing_says_so_in_every_section():
    html = render_html(Report())
    for sentence in ("FAIL: Nothing was compared", "No curves", "not recorded", "not measured", "Nothing was skipped"):
        assert sentence in visible(html)
    assert "verdict failed" in html


def test_a_case_that_was_only_skipped_has_its_line():
    html = render_html(Report(skips=[Skip("throughput", "lonely", "no GPU", "get one")]))
    table = html.partition('id="table"')[2].partition('id="curves"')[0]
    assert re.findall(r"lonely|skipped</b>", table) == ["lonely", "skipped</b>"]
    assert "The skipped checks at the end say what each of them needs." in visible(html)


def test_values_that_are_not_finite_are_spelled_out():
    rows = [Row("a", "b", "c", "d", f"t{v}", v, 1.0, Status.FAILED) for v in (math.nan, math.inf, None)]
    curves = [Curve("b", "prototype", "loss", (math.nan, 1.0)), Curve("b", "port", "loss", (math.inf,))]
    speeds = [Speed("b", "p", "q", (), (), 0, 0, math.nan, (math.nan, math.inf), 0)]
    html = render_html(Report(rows=rows, curves=curves, speeds=speeds))
    for words in (
        "ratio NaN",
        "ratio inf",
        "port has 1 value, prototype has 2",
        "port: 1 value is not finite, first at 0",
    ):
        assert words in visible(html)
    assert not re.search(r'="[^"]*nan[^"]*"', html)


def test_dead_parameters_are_marked_unless_the_baseline_has_them_too():
    flow = [GradientFlow("a", run, "embed", True, None, 0.0) for run in ("prototype", "port")]
    flow.append(GradientFlow("a", "port", "norm", True, 0.0, 0.0))
    html = render_html(Report(gradient_flow=flow))
    assert visible(html).count("its path to the loss is cut, as in prototype") == 1
    assert re.findall(r'<tr class="failed"><td class="name"[^>]*>(\w+)', html) == ["norm"]
    assert "2 parameters, 0 frozen, 1 suspicious" in html


def test_the_curve_of_an_equal_run_has_no_difference_to_draw():
    text = visible(render_html(Report(curves=[Curve("a", run, "loss", (1.0, 2.0)) for run in ("port", "prototype")])))
    assert "exactly equal at every micro-batch (2)" in text
    assert "relative difference" not in text


def test_a_lone_surrogate_in_a_name_does_not_stop_the_page(tmp_path):
    rows = [Row("a", "b\udcff", "port", "d", "e", 1.0, 2.0, Status.PASSED, against=Against.SELF_CONSISTENCY)]
    write_html(Report(rows=rows, curves=[Curve("b\udcff", "port", "l\udcff", (1.0,))]), tmp_path / "page.html")
    assert "b?" in (tmp_path / "page.html").read_text(encoding="utf-8")
