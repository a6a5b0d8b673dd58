"""The comparison itself: what it must fail on, what it must say, and that its numbers are the ones it promises."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity.calls import Call, calls_of
from parity.compare import (
    RowKey,
    View,
    compare,
    compare_groups,
    compare_named,
    compare_value,
    viewed,
)
from parity.locate import compare_calls
from parity.tolerances import Kind, Tolerance
from parity.trace import Trace
from tests.needs import GPU

SUBJECT = RowKey("forward", "one", "port")
LOOSE = 1e9
KINDS = pytest.mark.parametrize("kind", list(Kind))
ONES = torch.ones(3, 4)


def within(kind, bound=LOOSE):
    return Tolerance(kind, bound, "")


def judged(expected, found, kind, bound=LOOSE):
    return compare(SUBJECT, "logits", "mb0.step0.logits", expected, found, within(kind, bound))


@KINDS
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sides", [("expected",), ("found",), ("expected", "found")])
def test_what_is_not_finite_fails_on_either_side(kind, value, sides):
    pair = {"expected": ONES.clone(), "found": ONES.clone()}
    for side in sides:
        pair[side][1, 2] = value
    row = judged(pair["expected"], pair["found"], kind)
    assert not row.passed
    assert f"1 NaN or Inf on the {sides[0]} side" in row.detail


@KINDS
@pytest.mark.parametrize(
    ("expected", "found", "detail"),
    [
        *((ONES, torch.ones(shape), f"shape {shape}, expected (3, 4)") for shape in [(3,), (4, 3), (1, 3, 4), ()]),
        (torch.ones(0, 4), torch.ones(0, 4), "nothing compared"),
    ],
)
def test_another_shape_and_nothing_to_compare_fail(kind, expected, found, detail):
    row = judged(expected, found, kind)
    assert not row.passed
    assert detail in row.detail


@KINDS
def test_a_bound_is_met_or_broken(kind):
    values = torch.tensor([[0.0, -2.5], [1e-30, 1e30]])
    assert judged(values, values.clone(), kind, 0.0).measured == 0.0
    expected, found = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    measured = judged(expected, found, kind).measured
    assert measured > 0
    assert judged(expected, found, kind, measured).passed
    assert not judged(expected, found, kind, measured * 0.99).passed


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_another_dtype_is_not_equal(dtype):
    expected, found = torch.ones(5), torch.ones(5, dtype=dtype)
    assert judged(expected, found, Kind.EQUAL, 0.0).measured == 5
    assert judged(expected, found, Kind.ABSOLUTE, 0.0).passed


@pytest.mark.parametrize(
    ("expected", "found", "kind", "measured"),
    [
        ([2**60, 5], [2**60 + 1, 5], Kind.EQUAL, 1),  # beyond doubles
        ([True, False], [True, True], Kind.EQUAL, 1),
        ([3, 9], [3, 7], Kind.ABSOLUTE, 2),
        (1.0, 3.0, Kind.ABSOLUTE, 2),
        ([0.0, 0.0], [0.0, 0.0], Kind.RELATIVE, 0),
        ([0.0, 0.0], [0.0, 1e-30], Kind.RELATIVE, math.inf),
        ([100.0, 1e-6], [100.0, 2e-6], Kind.OF_MAX, pytest.approx(1e-8)),
        ([100.0, 1e-6], [100.0, 2e-6], Kind.RELATIVE, pytest.approx(1.0)),
    ],
)
def test_what_is_measured(expected, found, kind, measured):
    assert judged(torch.tensor(expected), torch.tensor(found), kind).measured == measured


@pytest.mark.parametrize(
    ("expected", "found", "passed", "detail"),
    [
        (ONES, None, False, "missing"),
        (None, ONES, False, "unexpected: the original has none"),
        (None, None, False, "missing"),
        (torch.ones(3).long(), torch.full((3,), 2), False, "expected 1, found 2"),
        (torch.full((3,), -math.inf), torch.full((3,), -math.inf), False, "infinite everywhere"),
        (torch.tensor([math.inf, 1.0]), torch.tensor([math.inf, 1.5]), True, "at (1,): expected 1.0, found 1.5"),
        (torch.tensor([math.inf, 1.0]), torch.tensor([-math.inf, 1.0]), False, "1 NaN or Inf on the expected side"),
    ],
)
def test_what_either_side_may_lack(expected, found, passed, detail):
    row = compare_named(SUBJECT, "q", "n", expected, found, within(Kind.ABSOLUTE))
    assert row.passed == passed
    assert detail in row.detail


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_sides_on_two_devices_are_compared(device):
    found = torch.tensor([math.inf, 1.5])
    row = compare_named(SUBJECT, "q", "n", found.to(device), found, within(Kind.ABSOLUTE, 0.0))
    assert row.passed


def test_groups_are_compared_by_name():
    one, two, tolerance = torch.ones(1), torch.full((1,), 2.0), within(Kind.ABSOLUTE, 0.5)
    rows = compare_groups(SUBJECT, "q", {"a": one, "b": one, "c": one}, {"d": one, "b": two, "a": one}, tolerance)
    assert {row.tensor: row.passed for row in rows} == {"a": True, "b": False, "c": False, "d": False}
    empty = compare_groups(SUBJECT, "q", {}, {}, tolerance)
    assert [(row.passed, row.detail) for row in empty] == [(False, "nothing to compare with")]
    assert not any(row.passed for row in compare_groups(SUBJECT, "q", {}, {"a": one}, tolerance))


@pytest.mark.parametrize(
    ("expected", "found", "passed"),
    [(1, 2, False), ("a", None, False), ([1], [1, 2], False), (math.nan, math.nan, False), ([0.9], [0.9], True)],
)
def test_values_are_equal_or_not(expected, found, passed):
    row = compare_value(SUBJECT, "q", "n", expected, found)
    assert (row.passed, row.detail) == (passed, "" if passed else f"found {found!r}, expected {expected!r}")


PADDED, PACKED = torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([1.0, 2.0, 3.0])
REAL = torch.tensor([[True, True], [True, False]])


@pytest.mark.parametrize(
    ("view", "place", "found", "passed"),
    [
        (View("*", rows=lambda trace, name: REAL if trace.run == "original" else None), "out", PACKED, True),
        (View("*", rows=lambda trace, name: REAL), "out", PADDED + ~REAL, True),
        (View("*", rows=lambda trace, name: REAL), "out", PADDED + REAL, False),
        (View("*", rows=lambda trace, name: REAL), "out", PADDED[:, :1], False),
        (View("*", port=lambda tensor, trace: tensor / 2), "out", PADDED * 2, True),
        (View("mb0.call.head*.into*", port=lambda tensor, trace: tensor / 2), "out", PADDED * 2, False),
        (View("mb0.call.head*.out*", *[lambda tensor, trace: tensor.flatten()] * 2), "out.logits", PADDED[None], True),
    ],
    ids=["packed", "padded", "padded, wrong", "of another length", "scaled", "another name", "a lone output"],
)
def test_a_view_gives_both_sides_the_same_coordinates(view, place, found, passed):
    tensors = {"original": {"mb0.call.head#0.out": PADDED}, "port": {f"mb0.call.head#0.{place}": found}}
    traces = [Trace(run, "", "", held, calls=("head#0",)) for run, held in tensors.items()]
    (mine,), (theirs,) = map(calls_of, viewed(*traces, [View("*"), view]))
    (row,) = compare_calls(SUBJECT, mine, theirs, exactly)
    assert row.passed == passed


def exactly(name, dtype):
    return within(Kind.ABSOLUTE, 0.0)


def test_outputs_that_one_side_alone_gives_are_one_row():
    def called(*places):
        return Call("(whole)", 0, out={place: torch.ones(2) for place in places})

    rows = compare_calls(SUBJECT, called("loss", "a", "b"), called("loss", "c"), exactly)
    assert [(row.tensor, row.passed) for row in rows] == [("(whole)#0.loss", True), ("(whole)#0", False)]
    assert rows[1].detail == "missing: a, b; unexpected: c; None in the name map for (whole), if that is right"
    (_, row) = compare_calls(SUBJECT, called("loss", "a"), called("loss"), exactly)
    assert (row.tensor, row.passed, row.detail) == ("(whole)#0.a", False, "missing")


def test_a_lone_output_is_held_to_the_bound_of_the_others_first():
    bounds = {"mb0.call.attention#0.out.0": within(Kind.ABSOLUTE, 1.0)}
    held = torch.ones(2), torch.ones(2, 2)
    pair = Call("attention", 0, out=dict(zip("01", held))), Call("attention", 0, out={"": held[0] * 2})
    (row,) = compare_calls(SUBJECT, *pair, lambda name, dtype: bounds.get(name, within(Kind.ABSOLUTE, 0.5)))
    assert (row.allowed, row.passed) == (1.0, True)


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_a_planted_difference_is_found_where_it_is(shape, data):
    index = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    found = torch.ones(shape)
    found[index] = 1.25
    for kind in (Kind.EQUAL, Kind.ABSOLUTE, Kind.OF_MAX, Kind.RELATIVE):
        row = judged(torch.ones(shape), found, kind, 0.0)
        assert not row.passed
        assert row.detail == f"at {index}: expected 1.0, found 1.25"
