"""The comparison itself: what it must fail on, what it must say, and that its numbers are the ones it promises."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parity.compare import Subject, compare, compare_groups, compare_named, compare_series, compare_value
from parity.tolerances import Kind, Tolerance
from parity.verdict import Row, Status

SUBJECT = Subject("forward", "one", "port")
LOOSE = 1e9


def within(kind: Kind, bound: float = LOOSE) -> Tolerance:
    return Tolerance(kind, bound, None, "")


def judged(expected: Tensor, found: Tensor, kind: Kind, bound: float = LOOSE, where: Tensor | None = None) -> Row:
    return compare(SUBJECT, "logits", "mb0.step0.logits", expected, found, within(kind, bound), where)


def test_a_row_says_whose_numbers_they_are() -> None:
    row = judged(torch.zeros(2), torch.tensor([0.0, 0.5]), Kind.ABSOLUTE, 1.0)
    named = (row.check, row.case, row.run, row.quantity, row.tensor)
    assert named == ("forward", "one", "port", "logits", "mb0.step0.logits")
    assert (row.measured, row.allowed, row.status) == (0.5, 1.0, Status.PASSED)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["expected", "found"])
def test_what_is_not_finite_fails_on_either_side(kind: Kind, value: float, side: str) -> None:
    pair = {"expected": torch.ones(3, 4), "found": torch.ones(3, 4)}
    pair[side][1, 2] = value
    row = judged(pair["expected"], pair["found"], kind)
    assert not row.passed
    assert f"1 NaN or Inf on the {side} side" in row.detail


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_on_both_sides_fails_too(kind: Kind, value: float) -> None:
    both = torch.tensor([1.0, value])
    assert not judged(both, both.clone(), kind).passed


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("shape", [(3,), (4, 3), (1, 3, 4), (3, 5), ()])
def test_another_shape_fails_even_where_it_would_broadcast(kind: Kind, shape: tuple[int, ...]) -> None:
    row = judged(torch.ones(3, 4), torch.ones(shape), kind)
    assert not row.passed
    assert row.detail == f"shape {shape}, expected (3, 4)"


@pytest.mark.parametrize("kind", list(Kind))
def test_nothing_compared_fails(kind: Kind) -> None:
    assert judged(torch.ones(0, 4), torch.ones(0, 4), kind).detail == "nothing compared"
    assert not judged(torch.ones(0, 4), torch.ones(0, 4), kind).passed
    nowhere = torch.zeros(3, dtype=torch.bool)
    assert not judged(torch.ones(3, 4), torch.ones(3, 4), kind, where=nowhere).passed


@pytest.mark.parametrize("kind", list(Kind))
def test_equal_tensors_pass_at_bound_zero(kind: Kind) -> None:
    values = torch.tensor([[0.0, -2.5], [1e-30, 1e30]])
    row = judged(values, values.clone(), kind, 0.0)
    assert row.passed
    assert row.measured == 0.0


@pytest.mark.parametrize("kind", list(Kind))
def test_a_bound_is_met_or_broken(kind: Kind) -> None:
    expected, found = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    measured = judged(expected, found, kind).measured
    assert measured is not None
    assert measured > 0
    assert judged(expected, found, kind, measured).passed
    assert not judged(expected, found, kind, measured * 0.99).passed


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_another_dtype_is_not_equal(dtype: torch.dtype) -> None:
    expected, found = torch.ones(5), torch.ones(5, dtype=dtype)
    row = judged(expected, found, Kind.EQUAL, 0.0)
    assert not row.passed
    assert row.measured == 5
    assert judged(expected, found, Kind.ABSOLUTE, 0.0).passed


def test_integers_beyond_doubles_are_told_apart() -> None:
    expected = torch.tensor([2**60, 5])
    assert judged(expected, expected + torch.tensor([1, 0]), Kind.EQUAL, 0.0).measured == 1


def test_booleans_and_integers_are_compared() -> None:
    assert judged(torch.tensor([True, False]), torch.tensor([True, True]), Kind.EQUAL, 0.0).measured == 1
    assert judged(torch.tensor([3, 9]), torch.tensor([3, 7]), Kind.ABSOLUTE).measured == 2


def test_relative_to_zero_only_zero_passes() -> None:
    zero = torch.zeros(2)
    assert judged(zero, zero, Kind.RELATIVE, 0.0).passed
    assert not judged(zero, torch.tensor([0.0, 1e-30]), Kind.RELATIVE).passed


def test_a_small_entry_counts_by_the_largest() -> None:
    expected, found = torch.tensor([100.0, 1e-6]), torch.tensor([100.0, 2e-6])
    assert judged(expected, found, Kind.OF_MAX).measured == pytest.approx(1e-8)
    assert judged(expected, found, Kind.RELATIVE).measured == pytest.approx(1.0)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("value", [7.0, math.nan])
def test_only_marked_positions_count(kind: Kind, value: float) -> None:
    expected, found = torch.ones(2, 3, 4), torch.ones(2, 3, 4)
    expected[1, 2] = 50.0
    found[1, 2] = value
    where = torch.tensor([[True, True, True], [True, True, False]])
    assert judged(expected, found, kind, 0.0, where).passed
    found[1, 1, 3] = 1.5
    row = judged(expected, found, kind, 0.0, where)
    assert not row.passed
    assert row.detail == "at (1, 1, 3): expected 1.0, found 1.5"


def test_marked_entries_alone_set_the_scale() -> None:
    expected, found = torch.tensor([1.0, math.nan]), torch.tensor([1.1, 0.0])
    row = judged(expected, found, Kind.OF_MAX, 0.2, torch.tensor([True, False]))
    assert row.passed
    assert row.measured == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 4), (2, 3, 4, 1)])
def test_a_mask_of_another_shape_fails(shape: tuple[int, ...]) -> None:
    row = judged(torch.ones(2, 3, 4), torch.ones(2, 3, 4), Kind.ABSOLUTE, where=torch.ones(shape, dtype=torch.bool))
    assert not row.passed
    assert f"the mask's {shape}" in row.detail


def test_a_scalar_has_an_index_too() -> None:
    assert judged(torch.tensor(1.0), torch.tensor(3.0), Kind.ABSOLUTE).detail == "at (): expected 1.0, found 3.0"


def test_gradients_are_left_alone() -> None:
    expected = torch.ones(2, requires_grad=True)
    assert judged(expected, expected * 2, Kind.ABSOLUTE).measured == 1.0


def test_a_tensor_on_one_side_only_fails() -> None:
    tolerance, value = within(Kind.ABSOLUTE), torch.ones(1)
    missing = compare_named(SUBJECT, "q", "n", value, None, tolerance)
    extra = compare_named(SUBJECT, "q", "n", None, value, tolerance)
    assert (missing.passed, missing.detail) == (False, "missing")
    assert (extra.passed, extra.detail) == (False, "unexpected: the original has none")
    assert not compare_named(SUBJECT, "q", "n", None, None, tolerance).passed


def test_groups_are_compared_by_name() -> None:
    one, two = torch.ones(1), torch.full((1,), 2.0)
    rows = compare_groups(
        SUBJECT, "q", {"a": one, "b": one, "c": one}, {"d": one, "b": two, "a": one}, within(Kind.ABSOLUTE, 0.5)
    )
    passed = {row.tensor: row.passed for row in rows}
    assert passed == {"a": True, "b": False, "c": False, "d": False}


def test_empty_groups_fail() -> None:
    rows = compare_groups(SUBJECT, "q", {}, {}, within(Kind.ABSOLUTE))
    assert [(row.passed, row.detail) for row in rows] == [(False, "nothing to compare with")]
    assert not any(row.passed for row in compare_groups(SUBJECT, "q", {}, {"a": torch.ones(1)}, within(Kind.ABSOLUTE)))


@pytest.mark.parametrize(("expected", "found"), [(1, 2), ("a", None), ([1], [1, 2]), (math.nan, math.nan), (1, "1")])
def test_unequal_values_fail(expected: object, found: object) -> None:
    row = compare_value(SUBJECT, "q", "n", expected, found)
    assert not row.passed
    assert row.detail == f"found {found!r}, expected {expected!r}"


def test_equal_values_pass() -> None:
    assert compare_value(SUBJECT, "q", "n", [0.9, 0.95], [0.9, 0.95]).passed


def test_curves_are_compared_point_by_point() -> None:
    row = compare_series(SUBJECT, "loss", "loss", [4.0, 2.0], [4.0, 2.5], within(Kind.RELATIVE, 0.1))
    assert (row.passed, row.measured) == (False, 0.25)
    assert "at (1,): expected 2.0, found 2.5" in row.detail
    assert not compare_series(SUBJECT, "loss", "loss", [1.0, 1.0], [1.0], within(Kind.RELATIVE)).passed
    assert not compare_series(SUBJECT, "loss", "loss", [], [], within(Kind.RELATIVE)).passed


FORMULAS: dict[Kind, Callable[[list[float], list[float]], float]] = {
    Kind.EQUAL: lambda a, b: float(sum(x != y for x, y in zip(a, b, strict=True))),
    Kind.ABSOLUTE: lambda a, b: max(abs(y - x) for x, y in zip(a, b, strict=True)),
    Kind.OF_MAX: lambda a, b: max(abs(y - x) for x, y in zip(a, b, strict=True)) / max(map(abs, a)),
    Kind.RELATIVE: lambda a, b: max(0.0 if x == y else abs(y - x) / abs(x) for x, y in zip(a, b, strict=True)),
}
ENTRIES = st.floats(0.015625, 100, width=32) | st.floats(-100, -0.015625, width=32)
PAIRS = st.integers(1, 12).flatmap(lambda n: st.tuples(*[st.lists(ENTRIES, min_size=n, max_size=n)] * 2))


@pytest.mark.parametrize("kind", FORMULAS)
@given(pair=PAIRS)
def test_measured_is_the_formula(kind: Kind, pair: tuple[list[float], list[float]]) -> None:
    expected, found = (torch.tensor(side) for side in pair)
    assert judged(expected, found, kind).measured == pytest.approx(FORMULAS[kind](*pair), rel=1e-12)


@pytest.mark.parametrize("kind", FORMULAS)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_a_planted_difference_is_found_where_it_is(kind: Kind, shape: list[int], data: st.DataObject) -> None:
    index = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    expected = torch.ones(shape)
    found = expected.clone()
    found[index] = 1.25
    row = judged(expected, found, kind, 0.0)
    assert not row.passed
    assert row.detail == f"at {index}: expected 1.0, found 1.25"


@given(pair=PAIRS, data=st.data())
def test_a_mask_is_a_selection(pair: tuple[list[float], list[float]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.booleans(), min_size=len(pair[0]), max_size=len(pair[0])).filter(any))
    expected, found = (torch.tensor(side) for side in pair)
    kept = [[value for value, keep in zip(side, chosen, strict=True) if keep] for side in pair]
    for kind, formula in FORMULAS.items():
        row = judged(expected, found, kind, where=torch.tensor(chosen))
        assert row.measured == pytest.approx(formula(*kept), rel=1e-12)
