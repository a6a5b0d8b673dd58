"""Single step: arguments go over, several faults are found at once, what cannot be called says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from parity import NameMap, Side, single_step
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


def test_renamed_arguments_go_over() -> None:
    names = NameMap(arguments={"part.scale": "factor"})
    report = single_step(Side(Original), side(Demanding), BATCH, names=names)
    report.raise_if_failed()
    assert {row.run for row in report.rows} == {"part", "(whole)"}


class Rounding(nn.Module):
    """No parameters, no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x.round().long()


class Flooring(Rounding):
    def forward(self, x: Tensor) -> Tensor:
        return x.floor().long()


class Flex(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.project, self.scale = nn.Linear(16, 16), scale

    def forward(self, x: Tensor) -> Tensor:
        heads = self.project(x)[None, None]
        return flex_attention(heads, heads, heads, scale=self.scale)


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise NotImplementedError("no backward on this device")


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return NoBackward.apply(super().forward(x))


class PlainlyDoubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def counted(module: nn.Module, batch: Tensor) -> Tensor:
    return module(batch).double().mean()


ROWS = torch.linspace(-2, 2, 32).reshape(2, 16)


# original, port, with a backward or not, failed quantities, words of a note
FORWARD_ONLY: dict[str, tuple[Any, Any, bool, list[str], str]] = {
    "no parameters": (Rounding, Rounding, True, [], ""),
    "no parameters, wrong": (Rounding, Flooring, True, ["out"], ""),
    "forward only": (Flex, Flex, False, [], ""),
    "forward only, wrong": (Flex, lambda: Flex(0.5), False, ["out"], ""),
    "the original has no backward": (lambda: Doubled(16, 3), lambda: PlainlyDoubled(16, 3), True, [], "no backward on"),
    "the port has none": (lambda: PlainlyDoubled(16, 3), lambda: Doubled(16, 3), True, ["refused"], ""),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("original", "port", "backward", "failed", "note"), FORWARD_ONLY.values(), ids=FORWARD_ONLY)
def test_sides_without_a_backward(original: Any, port: Any, backward: bool, failed: list[str], note: str) -> None:
    report = single_step(Side(original, counted), Side(port, counted), ROWS, backward=backward)
    assert report.rows
    assert [row.quantity for row in report.rows if row.status is Status.FAILED] == failed
    assert note in "; ".join(report.report.notes)
    assert "grad" not in {row.quantity for row in report.rows}


def test_an_original_that_cannot_be_called_again_is_skipped() -> None:
    class Once(nn.Module):
        """Takes back what it was given."""

        used = False

        def forward(self, x: Tensor) -> Tensor:
            if self.used:
                raise RuntimeError("only once")
            self.used = True
            return x * 2

    report = single_step(Side(Once, counted), Side(Rounding, counted), ROWS)
    assert not report.passed
    assert [skip.reason for skip in report.report.skips] == ["only once"]
