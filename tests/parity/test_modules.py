"""Half precision, module by module: what no bound on the whole sees is seen in the module that does it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from parity import Side, compare_sides, trace_side
from parity.modules import half_precision, lean_of
from parity.setup import pattern_loss
from parity.verdict import Status

WIDTH, ROWS = 64, 96
BATCH = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16() / 16


class Norm(nn.Module):
    """By root mean square, in float32."""

    def __init__(self, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), eps

    def forward(self, hidden_states):
        wide = hidden_states.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(hidden_states.dtype)


class Coarse(Norm):
    """In the precision of what it is given, sums too."""

    def forward(self, hidden_states):
        total = torch.zeros_like(hidden_states[..., :1])
        for column in hidden_states.square().split(1, -1):
            total = total + column
        return self.weight * (hidden_states * torch.rsqrt(total / WIDTH + self.eps))


class Block(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.up, self.down = norm, nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden_states):
        return hidden_states + self.down(torch.tanh(self.up(self.norm(hidden_states)))) / 16


class Steep(Block):
    """What is between the two matrices is another function."""

    def forward(self, hidden_states):
        return hidden_states + self.down(torch.tanh(1.02 * self.up(self.norm(hidden_states)))) / 16


class Halves(nn.Linear):
    """The same in another order of sums."""

    def forward(self, inner):
        halves = [inner[:, n::2] @ self.weight[:, n::2].T for n in (0, 1)]
        return sum(halves) + self.bias


class InParts(Block):
    def __init__(self, norm):
        super().__init__(norm)
        self.down = Halves(2 * WIDTH, WIDTH)


def side(block=Block, norm=Norm, eps=1e-5, dtype=torch.bfloat16):
    return Side(lambda: nn.Sequential(Block(Norm(1e-5)), block(norm(eps)), Block(Norm(1e-5))).to(dtype), backward=False)


def judged(port, **options):
    dtype = options.get("dtype", torch.bfloat16)
    return compare_sides(side(**options), port, [BATCH.to(dtype)], steps=1)


FAULTS = {
    "eps": (side(eps=1e-4), "1.norm"),
    "between": (side(Steep), "1"),
    "rounded more often": (side(norm=Coarse), "1.norm"),
}


@pytest.mark.parametrize(("port", "module"), FAULTS.values(), ids=FAULTS)
def test_what_rounding_hides_in_the_whole_is_seen_in_its_module(port, module):
    report = judged(port)
    assert report.failed == ("modules",), report
    assert report.first.module == module


def test_another_order_of_sums_is_none():
    report = judged(side(InParts))
    assert report.passed, report
    rows = [row for row in report.rows if row.check == "modules"]
    assert {"1.norm#0.out", "1.down#0.into.input", "1#0.out"} & {row.tensor for row in rows}
    assert all(0 < row.ratio < 1 for row in rows if row.tensor == "1#0.out")


def test_in_float32_it_has_no_subject():
    report = judged(side(dtype=torch.float32), dtype=torch.float32)
    (row,) = [row for row in report.rows if row.check == "modules"]
    assert row.status is Status.NOT_APPLICABLE
    assert "half precision" in row.detail


def cast(module, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return pattern_loss(module, batch)


def test_under_autocast_it_is_held_to_float64():
    sides = [replace(side(block, dtype=torch.float32), loss=cast) for block in (Block, InParts, Steep)]
    assert half_precision(trace_side(sides[0], [BATCH.float()], steps=1))
    reports = [compare_sides(sides[0], port, [BATCH.float()], steps=1) for port in sides[1:]]
    assert [report.failed for report in reports] == [(), ("modules",)], reports
    assert reports[1].first.module == "1"


def test_the_lean_is_that_of_all_entries():
    exact = torch.linspace(-1, 1, 33)
    assert lean_of(exact, exact * 1.01) == pytest.approx(0.01, rel=1e-5)
    assert lean_of(exact, exact + 0.5) < 1e-6
    assert lean_of(exact, exact * torch.nan) == torch.inf
    endless = torch.tensor([1.0, -torch.inf])
    assert lean_of(endless, endless) == 0
