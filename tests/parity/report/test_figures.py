"""Whatever is drawn is well-formed, in proportion, and lies within its axes."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.report.figures import Axes, Series, draw


def chart(values: list[float], log: bool = False, **more: object) -> str:
    return str(draw("a chart", "x", Axes("y", [Series(range(len(values)), values, "run0")], log=log, **more)))  # type: ignore[arg-type]


def labels(text: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", text)


def paths(text: str) -> list[str]:
    return re.findall(r'<path d="([^"]*)"[^>]*var\(--run0\)', text)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(), max_size=8), st.booleans())
def test_any_values_give_a_chart_with_every_point_inside(values: list[float], log: bool) -> None:
    text = chart(values, log)
    box = ElementTree.fromstring(text).get("viewBox", "")
    width, height = map(float, box.split()[2:])
    assert "nan" not in text
    for path in paths(text):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
        assert all(-6 <= x <= width + 6 for x in numbers[::2])
        assert all(-6 <= y <= height + 6 for y in numbers[1::2])


def test_one_step_up_is_as_high_as_the_next() -> None:
    (line,) = paths(chart([1.0, 2.0, 3.0]))
    _, first, _, second, _, third = map(float, re.findall(r"[\d.]+", line))
    assert first - second == pytest.approx(second - third, abs=0.2)
    assert first - second > 20


def test_a_log_axis_has_decades_and_a_place_for_zero_only_where_there_is_one() -> None:
    assert {"0", "1e-07", "1e-06"} <= set(labels(chart([0.0, 2e-7, 1e-6], log=True)))
    assert "0" not in labels(chart([2e-7, 1e-6], log=True))[3:]


def test_a_linear_axis_does_not_magnify_round_off() -> None:
    (line,) = paths(chart([11.5, 11.5000001]))
    _, first, _, second = map(float, re.findall(r"[\d.]+", line))
    assert first == pytest.approx(second, abs=0.2)


def test_gaps_stay_gaps_and_single_values_are_dots() -> None:
    line, dot = paths(chart([1.0, 2.0, math.nan, 3.0]))
    assert line.count("L") == 1
    _, first, _, second = re.findall(r"[\d.]+", dot)
    assert first == second
    assert len(paths(chart([1.0, 2.0, 3.0]))) == 1
    assert "no finite values" in chart([math.nan, math.inf])


def test_peaks_of_long_curves_are_drawn() -> None:
    values = [1000.0 if i == 4321 else math.sin(i) for i in range(20_000)]
    text = chart(values)
    highest = min(float(y) for path in paths(text) for y in re.findall(r"[\d.]+", path)[1::2])
    (line,) = paths(chart([0.0, 1000.0]))
    assert highest == pytest.approx(float(re.findall(r"[\d.]+", line)[3]), abs=0.5)
    assert len(text) < 200_000


def test_lengths_have_ticks_of_their_own() -> None:
    series = Series([1024.0, 2048.0], [1.0, 2.0], "base")
    text = draw("t", "T", Axes("s", [series], log=True, marks=[1024.0, 2048.0]))
    assert {"1,024", "2,048", "1", "10"} <= set(labels(text))


def test_the_title_is_escaped() -> None:
    assert "<b>" not in draw('"><b>', "x", Axes("y", [Series([0.0], [1.0], "base")]))
