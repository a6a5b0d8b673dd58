"""What one rounding moves: draws move nothing else, what bounds come of them, and faults that typed bounds let by."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from parity import Case, Side, compare_sides, compare_traces, trace_side
from parity.allowed import moved, spread_of
from parity.setup import pattern_loss
from parity.side import trace_case
from parity.trace import Trace, read_trace, write_trace
from parity.verdict import Status


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return self.down(self.up(x).tanh())


BATCHES = [torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def at_rate(rate, step=lambda module, optimizer: optimizer.step(), **words):
    return Side(Net, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate), step=step, **words)


def uphill(module, optimizer):
    for value in module.parameters():
        value.grad.neg_()
    optimizer.step()


def permuted(module, optimizer):
    for value in module.parameters():
        value.grad = value.grad.flip(0)
    optimizer.step()


def one_percent(module, optimizer):
    optimizer.param_groups[0]["lr"] *= 1.01
    optimizer.step()
    optimizer.param_groups[0]["lr"] /= 1.01


@pytest.mark.parametrize("rate", [1e-6, 1e-5, 1e-2])
@pytest.mark.parametrize(
    ("step", "check"), [(uphill, "optimizer_step"), (permuted, "optimizer_step"), (one_percent, "curve")]
)
def test_a_wrong_step_is_seen_at_every_rate(step, check, rate):
    report = compare_sides(at_rate(rate), at_rate(rate, step), BATCHES, checks=[check])
    assert report.failed == (check,)


def test_gradients_that_grow_later_are_no_part_of_the_clipping_that_agrees():
    """Adam hides the factor."""
    calls = []

    def steeper(module, x):
        calls.append(1)
        loss = pattern_loss(module, x)
        return loss + 0.5 * (loss - loss.detach()) if len(calls) > 1 else loss

    report = compare_sides(at_rate(1e-3), at_rate(1e-3, loss=steeper), BATCHES, checks=["clip", "curve"])
    rows = {row.tensor: row.passed for row in report.rows if row.quantity == "grad_norm"}
    assert rows == {"norm_after, the first 1 of 5 steps": True, "grad_norm": False}


@pytest.mark.parametrize("rate", [1e-6, 1e-2])
def test_the_same_formulas_in_another_order_pass_at_every_rate(rate):
    def turned(module, x):
        order = torch.arange(7, -1, -1)
        return pattern_loss(lambda given: module(given[order])[order], x)

    checks = ("loss", "gradients", "optimizer_step", "curve")
    compare_sides(at_rate(rate), at_rate(rate, loss=turned), BATCHES, steps=20, checks=checks).raise_if_failed()


def test_a_loss_that_is_infinite_on_both_sides_is_no_pass():
    endless = Side(Net, loss=lambda module, x: pattern_loss(module, x) * math.inf, backward=False)
    report = compare_sides(endless, endless, BATCHES, checks=["loss"])
    assert report.failed == ("loss",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_entry_moves_by_one_unit(dtype):
    values = torch.randn(1000)
    gap = (moved(values, 1, dtype) - values).abs() / values.abs()
    eps = torch.finfo(dtype).eps
    assert bool(((gap > 0.49 * eps) & (gap < 1.01 * eps)).all())
    assert torch.equal(moved(values, 1, dtype), moved(values, 1, dtype))
    assert not torch.equal(moved(values, 1, dtype), moved(values, 2, dtype))
    assert torch.equal(moved(values, 0, dtype), values)


@pytest.mark.parametrize(
    "value", [torch.arange(3), torch.tensor([0.0, 1.0]), torch.tensor([-math.inf, 0.0]), torch.randn(4).bfloat16()]
)
def test_ids_masks_and_what_enters_exactly_stay(value):
    """A record in bfloat16 enters a float32 run as it is; moving it by its own unit would loosen everything."""
    found = moved({"x": [value]}, 1)
    assert torch.equal(found["x"][0], value)


def autocast(module, x):
    with torch.autocast("cpu", torch.bfloat16):
        return pattern_loss(module, x)


@pytest.mark.parametrize(
    ("side", "precision"), [(at_rate(1e-3), "float32"), (at_rate(1e-3, loss=autocast), "bfloat16")]
)
def test_the_unit_is_that_of_the_precision_computed_in(side, precision):
    base = trace_side(side, BATCHES)
    assert (base.dtype, base.precision) == ("float32", precision)
    spread = spread_of(
        base, [trace_case(side, Case("", BATCHES), number, getattr(torch, precision)) for number in (1, 2, 3)]
    )
    eps = torch.finfo(getattr(torch, precision)).eps
    assert 0.1 * eps < spread["call.up#0.out"][0].rms < 10 * eps
    assert spread["curve.loss"] == sorted(spread["curve.loss"])


def test_a_trace_carries_its_spread_to_another_machine(tmp_path):
    trace = replace(trace_side(at_rate(1e-3), BATCHES), spread={"call.down#0.out": [1e-9], "after.up.weight": [1e-3]})
    again = read_trace(write_trace(trace, tmp_path / "trace"))
    assert again.spread == trace.spread
    found = trace_side(at_rate(1e-3), BATCHES)
    found.tensors["mb0.call.down#0.out"] = found.tensors["mb0.call.down#0.out"] * (1 + 2e-6)
    assert row_of(again, found, "down#0").allowed == pytest.approx(4 * 2**-23)
    assert "nobody moved the original" in row_of(replace(trace, spread={}), found, "down#0").detail


def row_of(original, found, name):
    return next(row for row in compare_traces(original, found).rows if row.tensor == name)


def test_a_row_that_rounding_moves_altogether_says_nothing():
    original, found = (trace_side(at_rate(1e-3), BATCHES) for _ in range(2))
    found.tensors["mb0.call.down#0.out"] *= 1.3
    row = row_of(replace(original, spread={"call.down#0.out": [0.2]}), found, "down#0")
    assert (row.status, row.compared) == (Status.SILENT, False)
    found.tensors["mb0.call.down#0.out"] /= 0
    assert row_of(replace(original, spread={"call.down#0.out": [0.2]}), found, "down#0").status is Status.FAILED


def test_whole_numbers_that_a_draw_changes_say_nothing():
    routes = [torch.tensor([0, 1]), torch.tensor([0, 2])]
    sides = [Trace(run, "one", "float32", {"mb0.tap.routes#0": value}) for run, value in zip("ab", routes)]
    for flips, status in ((0.0, Status.FAILED), (1.0, Status.SILENT)):
        sides[0].spread = {"tap.routes#0": [flips]}
        assert row_of(*sides, "mb0.tap.routes#0").status is status


RATE, EPS, ROUNDING = 1e-3, 1e-8, 1e-5


def stepped(moved):
    """A trace of Adam's first step from a gradient whose last entry, near eps, is ``moved`` by so many roundings."""
    gradient = torch.linspace(-1e-3, 1e-3, 64, dtype=torch.float64)
    gradient[-1] = 10 * EPS + moved * ROUNDING * gradient.square().mean().sqrt()
    kept = torch.linspace(-1e-3, 1e-3, 64, dtype=torch.float64)
    kept[-1] = 10 * EPS
    after = -RATE * gradient / (gradient.abs() + EPS)
    tensors = {"init.w": torch.zeros(64).double(), "after.w": after, "mb0.grad.w": kept}
    spread = {"grad.w": [ROUNDING], "after.w": [1e-8]}
    return Trace("run", "case", "float32", tensors, trained=("w",), spread=spread)


@pytest.mark.parametrize(("moved", "passed"), [(0.5, True), (3, True), (-3, True), (6, False)])
def test_what_rounding_of_a_gradient_near_eps_makes_of_adam_s_step_is_allowed(moved, passed):
    """One such entry has nearly all of it, and the draws had missed it."""
    rows = compare_traces(stepped(0), stepped(moved), checks=["optimizer_step"]).rows
    assert [(row.tensor, row.passed) for row in rows if row.quantity == "after_step1"] == [("after.w", passed)]


def test_bounds_grow_with_the_steps_as_the_draws_do():
    original, found = (trace_side(at_rate(1e-3), BATCHES) for _ in range(2))
    original.spread = {"curve.loss": [1e-7, 1e-7, 1e-7, 1e-4, 1.0]}
    for index, passed in ((0, False), (2, False), (4, True)):
        curve = [replace(one, loss=one.loss * (1 + 3e-4 * (n == index))) for n, one in enumerate(found.curve)]
        row = row_of(original, replace(found, curve=curve), "loss")
        assert row.passed is passed
    assert "from (4,) on rounding alone moves all of it" in row.detail
