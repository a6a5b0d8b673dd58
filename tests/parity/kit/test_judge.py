"""Rules of single rows: undetermined entries, lone outputs, infinities, parameters that one side lacks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from parity import Trace, compare_traces
from parity.compare import Subject
from parity.kit.tolerances import FLOAT32
from parity.locate import compare_outputs, paired, within
from parity.trace import Point

SUBJECT = Subject("forward", "case", "port")


def trace(after: Tensor, grad: Tensor) -> Trace:
    return Trace(
        "port",
        "case",
        "float32",
        {"init.w": torch.zeros(100), "mb0.grad.w": grad, "after.w": after, "final.w": torch.zeros(100)},
        [Point(0, 1.0, (), 1.0, 1e-3, 1e-3)],
        trained=("w",),
    )


@pytest.mark.parametrize(
    ("small", "moved", "passed"), [(1, 0, True), (2, 0, True), (3, 0, False), (1, 50, False), (0, 0, False)]
)
def test_entries_without_a_clear_gradient_may_go_either_way(small: int, moved: int, passed: bool) -> None:
    grad, after = torch.ones(100), torch.zeros(100)
    grad[:small] = 1e-9
    after[moved] = 2e-3
    report = compare_traces(trace(torch.zeros(100), grad), trace(after, grad))
    row = next(row for row in report.rows if row.check == "optimizer_step")
    assert row.passed == passed
    assert ("entries left out" in row.detail) == (0 < small <= 2)


def test_a_lone_output_is_held_against_the_first_of_several() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert paired({"": one}, {"0": two, "1": one}) == [("", one, two)]
    assert paired({"a": one, "b": two}, {"b": two}) == [("a", one, None), ("b", two, two)]
    assert paired({"a": one}, {"a": one, "b": two}) == [("a", one, one), ("b", None, two)]
    assert paired({}, {}) == []


@pytest.mark.parametrize(
    ("expected", "found", "passed"),
    [
        ([1.0, math.inf], [1.0, math.inf], True),
        ([1.0, math.inf], [1.0, -math.inf], False),
        ([1.0, math.inf], [2.0, math.inf], False),
        ([1.0, math.inf], [1.0, 5.0], False),
        ([-math.inf], [-math.inf], True),
        ([math.nan], [math.nan], False),
    ],
)
def test_infinities_agree_only_with_themselves(expected: list[float], found: list[float], passed: bool) -> None:
    pair = torch.tensor(expected), torch.tensor(found)
    assert compare_outputs(SUBJECT, "out", "a#0", *pair, FLOAT32["out"]).passed == passed
    assert within(1e-5)(*pair) == passed


def test_whole_numbers_must_be_equal() -> None:
    pair = torch.tensor([1_000_000_000]), torch.tensor([1_000_000_001])
    assert not compare_outputs(SUBJECT, "out", "a#0", *pair, FLOAT32["out"]).passed
    assert compare_outputs(SUBJECT, "out", "a#0", pair[0], pair[0], FLOAT32["out"]).passed


def test_another_number_of_gradient_norms_fails() -> None:
    grad = torch.ones(100)
    expected, found = trace(torch.zeros(100), grad), trace(torch.zeros(100), grad)
    found.curve = [Point(0, 1.0, (), None, 1e-3, 1e-3)]
    report = compare_traces(expected, found, checks=["curve"])
    assert report.failed == ("curve",)
    assert next(row for row in report.rows if not row.passed).tensor == "points with grad_norm"


def test_two_empty_traces_show_nothing() -> None:
    report = compare_traces(Trace("a", "case", "float32"), Trace("b", "case", "float32"))
    assert not report.passed
    assert {row.detail for row in report.rows if row.status.value == "failed"} == {"nothing compared"}
