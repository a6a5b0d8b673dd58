"""Every check finds a fault that no other check finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from parity import CHECKS, Kind, ParityError, Side, Tolerance, compare_sides
from parity.errors import InputError
from parity.kit.side import pattern_loss
from parity.verdict import Status


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).tanh())


def batches() -> list[Tensor]:
    return [torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def shifted() -> nn.Module:
    net = Net()
    net.up.bias.data += 1e-6
    return net


def scaled_loss(module: nn.Module, batch: Tensor) -> Tensor:
    return pattern_loss(module, batch) * 1.001


class DetachedDown(Net):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.up(x).tanh(), self.down.weight, self.down.bias.detach())


class LoudUp(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.down((self.up(x) * 1.1).tanh())


def decaying(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.5)


def falling(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def save_coarsely(module: nn.Module, folder: Path) -> None:
    save_file({name: value.bfloat16().float() for name, value in module.state_dict().items()}, folder / "net.st")


def load(folder: Path) -> nn.Module:
    net = Net()
    net.load_state_dict(load_file(folder / "net.st"))
    return net


def momentum(module: Any, optimizer: torch.optim.Optimizer) -> None:
    """A velocity that is kept where no checkpoint looks."""
    for parameter in module.parameters():
        parameter.velocity = 0.9 * getattr(parameter, "velocity", 0.0) + parameter.grad
        parameter.grad = parameter.velocity.clone()
    optimizer.step()


class Wasteful(Net):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(200):
            nn.functional.linear(x, self.up.weight)
        return super().forward(x)


FAULTS: dict[str, tuple[str, Side, Side, dict[str, Any]]] = {
    "another start": ("weights", Side(Net), Side(shifted), {"copy_weights": False}),
    "another function": ("forward", Side(Net), Side(LoudUp), {}),
    "another loss": ("loss", Side(Net), Side(Net, loss=scaled_loss), {}),
    "a bias detached": ("gradients", Side(Net), Side(DetachedDown), {}),
    "another weight decay": ("optimizer_step", Side(Net), Side(Net, optimizer=decaying), {}),
    "another schedule": ("curve", Side(Net), Side(Net, schedule=falling), {}),
    "saved in bfloat16": ("round_trip", Side(Net), Side(Net, save=save_coarsely, load=load), {}),
    "a velocity nobody saves": ("resume", Side(Net, step=momentum), Side(Net, step=momentum), {}),
    "work for nothing": ("throughput", Side(Net), Side(Wasteful), {"checks": (*CHECKS, "throughput")}),
}
"""The check that finds it, the original, the port, further arguments."""


@pytest.mark.parametrize(("check", "original", "port", "changes"), FAULTS.values(), ids=FAULTS)
def test_the_check_alone_finds_the_fault(check: str, original: Side, port: Side, changes: dict[str, Any]) -> None:
    report = compare_sides(original, port, batches(), **changes)
    assert report.failed == (check,)
    assert report.first is not None
    assert report.first.check == check
    with pytest.raises(ParityError, match=check):
        report.raise_if_failed()


def test_every_check_has_a_fault() -> None:
    assert {fault[0] for fault in FAULTS.values()} == {*CHECKS, "throughput"} - {"batches"}  # those of shipped ports


def test_without_a_fault_every_check_has_rows_and_passes() -> None:
    report = compare_sides(Side(Wasteful), Side(Net), batches(), checks=(*CHECKS, "throughput"))
    report.raise_if_failed()
    assert {row.check for row in report.rows} == {*CHECKS, "throughput"} - {"batches"}
    assert report.first is None
    assert report.report.speeds[0].ratio > 1.2


def test_what_follows_from_a_failure_is_blocked() -> None:
    report = compare_sides(Side(Net), Side(LoudUp), batches())
    statuses = {row.check: set() for row in report.rows}
    for row in report.rows:
        statuses[row.check].add(row.status)
    assert Status.FAILED in statuses["forward"]
    for check in ("loss", "gradients", "optimizer_step", "curve"):
        assert Status.FAILED not in statuses[check]
        assert Status.BLOCKED in statuses[check]


def test_own_tolerances_take_the_place_of_the_defaults() -> None:
    loose = {
        name: Tolerance(Kind.ABSOLUTE, 9.0, None, "the test's own")
        for name in ("out", "loss", "grad", "grad_norm", "after", "final", "curve")
    }
    assert compare_sides(Side(Net), Side(LoudUp), batches(), tolerances=loose).passed


def build_in(dtype: torch.dtype) -> Callable[[], nn.Module]:
    return lambda: Net().to(dtype)


def test_float64_is_held_to_its_own_table() -> None:
    class Rounded(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + 1e-5)

    wide = [batch.double() for batch in batches()]
    assert compare_sides(Side(build_in(torch.float64)), Side(build_in(torch.float64)), wide).passed
    report = compare_sides(Side(build_in(torch.float64)), Side(lambda: Rounded().double()), wide)
    assert report.failed == ("forward",)
    assert compare_sides(Side(Net), Side(Rounded), batches(), checks=["forward"]).passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checks": ["speed"]}, "comparison: checks: found speed"),
        ({"tolerances": {"output": Tolerance(Kind.ABSOLUTE, 1.0, None, "")}}, "tolerances: found output"),
        ({"steps": 0}, "comparison: steps: found 0"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare_sides(Side(Net), Side(Net), batches(), **changes)


def test_no_batches_are_refused() -> None:
    with pytest.raises(InputError, match="batches: found none"):
        compare_sides(Side(Net), Side(Net), [])


def test_a_dtype_without_a_table_asks_for_tolerances() -> None:
    half = [batch.bfloat16() for batch in batches()]
    with pytest.raises(InputError, match="dtype: found bfloat16, expected tolerances for"):
        compare_sides(Side(build_in(torch.bfloat16)), Side(build_in(torch.bfloat16)), half)


def test_code_that_raises_while_saving_is_a_failure() -> None:
    def save(module: nn.Module, folder: Path) -> None:
        raise RuntimeError("no room")

    report = compare_sides(Side(Net), Side(Net, save=save), batches())
    assert report.failed == ("round_trip",)
    assert "RuntimeError: no room" in str(report)


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be one number, found shape \(5, 6\)"):
        compare_sides(Side(Net, loss=lambda module, batch: module(batch)), Side(Net), batches())


def test_reports_are_written(tmp_path: Path) -> None:
    report = compare_sides(Side(Net, name="paper"), Side(Net, name="mine"), batches())
    report.write_html(tmp_path / "report.html")
    report.write_json(tmp_path / "report.json")
    assert "mine" in (tmp_path / "report.html").read_text()
    assert '"passed": true' in (tmp_path / "report.json").read_text()
