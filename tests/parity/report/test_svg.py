from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.report.axis import decade, linear_axis, log_axis, nice_step
from parity.report.charts import relative_differences
from parity.report.svg import Bar, Series, bar_chart, line_chart, thinned

ODD = (math.nan, math.inf, -math.inf)
SVG_FLOATS = st.floats()


def test_a_linear_axis_maps_its_ends_and_refuses_what_is_not_finite() -> None:
    axis = linear_axis([0.0, 10.0, *ODD], 100, 0, whole=True)
    assert axis.place(0.0) == 100
    assert axis.place(10.0) == 0
    assert [axis.place(value) for value in ODD] == [None] * 3
    assert [label for _, label in axis.ticks()] == ["0", "2", "4", "6", "8", "10"]


def test_a_linear_axis_does_not_magnify_round_off() -> None:
    axis = linear_axis([11.5, 11.5000001], 0, 100)
    assert axis.high - axis.low > 0.1


def test_a_whole_axis_has_whole_ticks_only() -> None:
    assert [label for _, label in linear_axis([0.0, 2.0], 0, 100, whole=True).ticks()] == ["0", "1", "2"]
    assert [label for _, label in linear_axis([3.0], 0, 100, whole=True).ticks()] == ["3"]


def test_a_log_axis_keeps_a_place_for_zero_only_where_there_is_one() -> None:
    with_zero, without = log_axis([0.0, 1e-3, 1.0, *ODD], 0, 100), log_axis([1e-3, 1.0], 0, 100)
    assert with_zero.place(0.0) == 0
    assert with_zero.ticks()[0] == (0, "0")
    assert with_zero.place(1e-3) == pytest.approx(25)
    assert without.place(0.0) is None
    assert without.place(1e-3) == pytest.approx(0)
    assert [with_zero.place(value) for value in (*ODD, -1.0)] == [None] * 4


@pytest.mark.parametrize("values", [[], [math.nan], [0.0], [5e-324], [1.7e308, 5e-324], [1.0]])
def test_a_log_axis_can_be_made_of_anything(values: list[float]) -> None:
    axis = log_axis(values, 0, 100)
    assert axis.high > axis.low
    assert all(0 <= pixel <= 100 for pixel, _ in axis.ticks())


@given(st.lists(SVG_FLOATS, max_size=8), st.booleans())
def test_every_finite_value_lies_on_the_axis(values: list[float], log: bool) -> None:
    axis = log_axis(values, 0, 100) if log else linear_axis(values, 0, 100)
    pixels = [pixel for value in values if (pixel := axis.place(value)) is not None]
    assert all(-1e-6 <= pixel <= 100 + 1e-6 for pixel in pixels)
    labels = [label for _, label in axis.ticks()]
    assert len(set(labels)) == len(labels) <= 12


@given(st.lists(SVG_FLOATS, max_size=8), st.booleans())
def test_line_charts_are_well_formed_whatever_they_draw(values: list[float], log: bool) -> None:
    points = tuple((float(i), value) for i, value in enumerate(values))
    text = line_chart([Series("<a>", points, "base")], "a & b", "x", "y", log=log)
    root = ElementTree.fromstring(text)
    assert "nan" not in "".join(element.get("points", "") for element in root.iter())


@given(st.lists(st.none() | SVG_FLOATS.map(abs), max_size=5))
def test_bar_charts_are_well_formed_and_stay_inside(values: list[float | None]) -> None:
    root = ElementTree.fromstring(bar_chart([Bar("<n>" * 40, value, "failed") for value in values], "t"))
    assert all(4 + float(rect.get("width", "nan")) <= 400 for rect in root.iter("rect"))


def test_nan_and_infinity_fill_the_bar_and_zero_draws_none() -> None:
    root = ElementTree.fromstring(bar_chart([Bar("n", value, "failed") for value in (math.nan, math.inf, 0.0)], "t"))
    widths = [rect.get("width") for rect in root.iter("rect") if rect.get("class") == "bar failed"]
    assert widths == ["334.0", "334.0"]


def test_gaps_stay_gaps_and_single_points_are_dots() -> None:
    points = tuple(enumerate((1.0, 2.0, math.nan, 3.0)))
    text = line_chart([Series("a", points, "run0")], "t", "x", "y")
    assert text.count("<polyline") == 1
    assert text.count("<circle") == 1


def test_thinning_keeps_the_peaks() -> None:
    points = [(float(i), 1000.0 if i == 4321 else math.sin(i)) for i in range(20_000)]
    kept = thinned(points, 500)
    assert len(kept) <= 510
    assert (4321.0, 1000.0) in kept
    assert kept == sorted(kept)
    assert thinned(points[:10], 500) == points[:10]


def test_thinning_does_not_hide_values_that_are_not_finite() -> None:
    points = [(float(i), math.nan if i == 77 else 1.0) for i in range(5000)]
    assert any(math.isnan(y) for _, y in thinned(points, 100))


def test_relative_differences() -> None:
    assert relative_differences((2.0, 0.0, 0.0, math.inf), (3.0, 0.0, 1.0, math.inf, 5.0)) == (0.5, 0.0, math.inf, 0.0)
    assert math.isnan(relative_differences((1.0,), (math.nan,))[0])


def test_steps_and_decades_are_round() -> None:
    assert [nice_step(step) for step in (0.7, 1.0, 1.2, 3.0, 9.0)] == [1, 1, 2, 5, 10]
    assert [decade(exponent) for exponent in (-8, -2, 0, 3, 5)] == ["1e-8", "0.01", "1", "1000", "1e5"]


def test_one_absurd_value_does_not_flatten_the_bars() -> None:
    root = ElementTree.fromstring(bar_chart([Bar("n", value, "failed") for value in (1e300, 100.0)], "t"))
    widths = [float(rect.get("width", "nan")) for rect in root.iter("rect") if rect.get("class") == "bar failed"]
    assert widths[0] == 334.0
    assert 50 < widths[1] < 334.0
