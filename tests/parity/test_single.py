"""Single step: arguments go over, several faults are found at once, what cannot be called says so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parity import Side, single_step
from parity.verdict import Status
from tests.parity.example import load, side_with


def two_faults(block: Any) -> None:
    block.attention.wq.register_forward_hook(lambda module, args, out: out + 0.01)
    block.feed_forward.w2.register_forward_hook(lambda module, args, out: out * 1.01)


def test_every_faulty_module_is_found_in_one_run() -> None:
    example = load()
    report = single_step(example.ORIGINAL, side_with(two_faults), example.batches()[0], names=example.NAMES)
    failed = {row.run for row in report.rows if row.status is Status.FAILED}
    blocked = {row.run for row in report.rows if row.status is Status.BLOCKED}
    assert failed == {"attention.wq", "feed_forward.w2"}
    assert blocked == {"attention", "feed_forward", "(whole)"}


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor, scale: Tensor, unused: Tensor | None = None) -> Tensor:
        return x * self.weight * scale


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Scaled()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, scale=torch.tensor(2.0), unused=x)


class Renamed(Scaled):
    """Another name for the first argument, and one that it does not take."""

    def forward(self, hidden: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        return hidden * self.weight * scale


class Demanding(Scaled):
    def forward(self, hidden: Tensor, factor: Tensor) -> Tensor:  # type: ignore[override]
        return hidden * self.weight * factor


class Broken(Scaled):
    def forward(self, x: Tensor, scale: Tensor, unused: Tensor | None = None) -> Tensor:
        raise RuntimeError("not written yet")


def side(part: type[nn.Module]) -> Side:
    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = part()

        def forward(self, x: Tensor) -> Tensor:
            return x * self.part.weight * 2  # the part itself is never called: it is judged alone all the same

    return Side(Port, name="port")


BATCH = torch.tensor([[1.0, 4.0]])


def test_arguments_go_over_by_name_and_the_first_tensor_by_place() -> None:
    report = single_step(Side(Original), side(Renamed), BATCH)
    report.raise_if_failed()
    assert {row.run for row in report.rows} == {"part", "(whole)"}
    assert "part#0: its forward does not take unused" in report.report.notes


def test_what_cannot_be_called_is_skipped_with_the_remedy() -> None:
    report = single_step(Side(Original), side(Demanding), BATCH)
    assert {row.run for row in report.rows} == {"(whole)"}
    assert [skip.case for skip in report.report.skips] == ["part#0"]
    assert "requires factor" in report.report.skips[0].reason
    assert "adapt={'part': ...}" in report.report.skips[0].remedy


def test_an_adapter_says_how_to_call_it() -> None:
    adapt = {"part": lambda args, kwargs: ((), {"hidden": args[0], "factor": kwargs["scale"]})}
    report = single_step(Side(Original), side(Demanding), BATCH, adapt=adapt)
    report.raise_if_failed()
    assert {row.run for row in report.rows} == {"part", "(whole)"}
    wrong = {"part": lambda args, kwargs: ((), {"hidden": args[0], "factor": kwargs["scale"] + 1})}
    report = single_step(Side(Original), side(Demanding), BATCH, adapt=wrong)
    assert report.first is not None
    assert report.first.module == "part"


def test_a_module_that_raises_is_a_failure_of_its_own() -> None:
    report = single_step(Side(Original), side(Broken), BATCH)
    assert report.first is not None
    assert report.first.module == "part"
    assert "RuntimeError: not written yet" in report.first.detail


def test_without_a_common_module_nothing_was_shown() -> None:
    report = single_step(Side(Original), side(Renamed), BATCH, names={"part": None, "": "elsewhere"})
    assert not report.passed
    assert report.rows == []
