"""Whatever is drawn is well-formed, in proportion, and lies within its axes."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.report.figures import Axes, Series, draw


def chart(values, log=False):
    return str(draw("a chart", "x", Axes("y", [Series(range(len(values)), values, "run0")], log=log)))


def labels(text):
    return re.findall(r"<text[^>]*>([^<]*)</text>", text)


def paths(text):
    return re.findall(r'<path d="([^"]*)"[^>]*var\(--run0\)', text)


def points(text):
    """x and y of every line."""
    numbers = [[float(number) for number in re.findall(r"-?[\d.]+", path)] for path in paths(text)]
    return [(found[::2], found[1::2]) for found in numbers]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(), max_size=8), st.booleans())
def test_any_values_give_a_chart_with_every_point_inside(values, log):
    text = chart(values, log)
    width, height = map(float, ElementTree.fromstring(text).get("viewBox", "").split()[2:])
    assert "nan" not in text
    for x, y in points(text):
        assert all(-6 <= place <= width + 6 for place in x)
        assert all(-6 <= place <= height + 6 for place in y)


def test_one_step_up_is_as_high_as_the_next_and_round_off_is_not_magnified():
    ((_, (first, second, third)),) = points(chart([1.0, 2.0, 3.0]))
    assert first - second == pytest.approx(second - third, abs=0.2)
    assert first - second > 20
    ((_, (first, second)),) = points(chart([11.5, 11.5000001]))
    assert first == pytest.approx(second, abs=0.2)


def test_a_log_axis_has_decades_and_a_place_for_zero_only_where_there_is_one():
    assert {"0", "1e-07", "1e-06"} <= set(labels(chart([0.0, 2e-7, 1e-6], log=True)))
    (_, (low, middle, high)), *_ = points(chart([1e-7, 1e-6, 1e-5], log=True))
    assert low - middle == pytest.approx(middle - high, abs=0.2)
    assert "0" not in labels(chart([2e-7, 1e-6], log=True))[3:]


def test_gaps_stay_gaps_and_single_values_are_dots():
    text = chart([1.0, 2.0, math.nan, 3.0])
    _, ((left, right), _) = points(text)
    assert left == right
    assert paths(text)[0].count("L") == 1
    assert len(points(chart([1.0, 2.0, 3.0]))) == 1
    assert "no finite values" in chart([math.nan, math.inf])


def test_peaks_of_long_curves_are_drawn():
    text = chart([1000.0 if i == 4321 else math.sin(i) for i in range(20_000)])
    ((_, (_, highest)),) = points(chart([0.0, 1000.0]))
    assert min(min(y) for _, y in points(text)) == pytest.approx(highest, abs=0.5)
    assert len(text) < 200_000
