"""Entries that no gradient determines are left out of the judgement, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from parity.prototypes.checks.recorded.determined import compare_parameters

from parity.prototypes.case import Case
from parity.prototypes.checks.evidence import Evidence
from parity.trace import Trace

NAME = "fc.weight"


def evidence(case: Case, grad: torch.Tensor) -> Evidence:
    expected = Trace("recorded", case.name, "fp32", {f"mb0.grad.{NAME}": grad})
    return Evidence(case, expected, Trace("port", case.name, "fp32"), lambda: expected)


def judge(case: Case, grad: torch.Tensor, gap: torch.Tensor) -> tuple[bool, str]:
    held = evidence(case, grad)
    start = torch.zeros_like(grad)
    (row,) = compare_parameters(held, held.subject("optimizer_step"), "after", {NAME: start}, {NAME: start + gap})
    return row.passed, row.detail


@pytest.fixture
def grad() -> torch.Tensor:
    """A hundred entries of size one; the first is a millionth of that, below the tolerance of gradients."""
    values = torch.ones(100)
    values[0] = 1e-6
    return values


def test_an_undetermined_entry_is_named_and_not_judged(case: Case, grad: torch.Tensor) -> None:
    gap = torch.zeros(100)
    gap[0] = 2e-3
    passed, detail = judge(case, grad, gap)
    assert passed
    assert "1 of 100 entries left out" in detail


def test_a_determined_entry_is_judged(case: Case, grad: torch.Tensor) -> None:
    gap = torch.zeros(100)
    gap[:2] = 2e-3
    passed, detail = judge(case, grad, gap)
    assert not passed
    assert "at (1,)" in detail


def test_too_many_undetermined_entries_fail(case: Case) -> None:
    grad = torch.full((100,), 1e-9)
    grad[:50] = 1.0
    assert not judge(case, grad, torch.full((100,), 2e-3))[0]
    gap = torch.zeros(100)
    gap[50] = 2e-3
    assert not judge(case, grad, gap)[0]


def test_nothing_is_left_out_while_all_entries_pass(case: Case, grad: torch.Tensor) -> None:
    passed, detail = judge(case, grad, torch.full((100,), 1e-6))
    assert passed
    assert "left out" not in detail
