"""Single step: arguments go over, several faults are found at once, what cannot be called says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from parity import NameMap, Side, single_step
from parity.run import KitReport
from parity.verdict import Status
from tests.parity.example import load, side_with


def runs(report: KitReport, status: Status) -> set[str]:
    return {row.run for row in report.rows if row.status is status}


def test_every_faulty_module_is_found_in_one_run() -> None:
    def two_faults(block: Any) -> None:
        block.attention.wq.register_forward_hook(lambda module, args, out: out + 0.01)
        block.feed_forward.w2.register_forward_hook(lambda module, args, out: out * 1.01)

    example = load()
    report = single_step(example.ORIGINAL, side_with(two_faults), example.batches()[0], names=example.NAMES)
    assert runs(report, Status.FAILED) == {"attention.wq", "feed_forward.w2"}
    assert runs(report, Status.BLOCKED) == {"attention", "feed_forward", "(whole)"}


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor, scale: Tensor, unused: Tensor | None = None) -> Tensor:
        return x * self.weight * scale


class Renamed(Scaled):
    """Another name for the first argument, and one that it does not take."""

    def forward(self, hidden: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(hidden, scale)


class Demanding(Scaled):
    def forward(self, hidden: Tensor, factor: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(hidden, factor)


class Broken(Scaled):
    def forward(self, x: Tensor, scale: Tensor, unused: Tensor | None = None) -> Tensor:
        raise RuntimeError("not written yet")


class Around(nn.Module):
    def __init__(self, part: type[nn.Module], calls: bool) -> None:
        super().__init__()
        self.part, self.calls = part(), calls

    def forward(self, x: Tensor) -> Tensor:
        """Without a call the part is judged alone all the same."""
        return self.part(x, scale=torch.tensor(2.0), unused=x) if self.calls else x * self.part.weight * 2


def adapted(add: float) -> dict[str, Any]:
    return {"part": lambda args, kwargs: ((), {"hidden": args[0], "factor": kwargs["scale"] + add})}


# the port's part, how it is called, is it right (None: skipped), words of a note, a skip or the finding
PARTS: dict[str, tuple[type[nn.Module], dict[str, Any], bool | None, str]] = {
    "by name and place": (Renamed, {}, True, "part#0: its forward does not take unused"),
    "by no name": (Demanding, {}, None, "requires factor"),
    "by an adapter": (Demanding, {"adapt": adapted(0)}, True, ""),
    "by a wrong adapter": (Demanding, {"adapt": adapted(1)}, False, ""),
    "by a map of arguments": (Demanding, {"names": NameMap(arguments={"part.scale": "factor"})}, True, ""),
    "raises": (Broken, {}, False, "RuntimeError: not written yet"),
}


@pytest.mark.parametrize(("part", "options", "right", "words"), PARTS.values(), ids=PARTS)
def test_arguments_go_over_or_a_skip_says_why_not(part: Any, options: Any, right: bool | None, words: str) -> None:
    sides = Side(lambda: Around(Scaled, True)), Side(lambda: Around(part, False), name="port")
    report = single_step(*sides, torch.tensor([[1.0, 4.0]]), **options)
    assert "part" in runs(report, Status.PASSED if right else Status.FAILED) or right is None
    assert "(whole)" in runs(report, Status.PASSED)
    assert (report.first and report.first.module) == ("part" if right is False else None)
    skips = [(skip.case, "adapt={'part': ...}" in skip.remedy) for skip in report.report.skips]
    assert skips == ([("part#0", True)] if right is None else [])
    assert words in "; ".join([*report.report.notes, *(skip.reason for skip in report.report.skips), str(report.first)])


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


class Once(nn.Module):
    """Cannot be called again."""

    used = False

    def forward(self, x: Tensor) -> Tensor:
        if self.used:
            raise RuntimeError("only once")
        self.used = True
        return x * 2


# original, port, options, failed quantities, words of a note or a skip
FORWARD_ONLY: dict[str, tuple[Any, Any, dict[str, Any], list[str], str]] = {
    "no parameters": (Rounding, Rounding, {}, [], ""),
    "no parameters, wrong": (Rounding, Flooring, {}, ["out"], ""),
    "forward only": (Flex, Flex, {"backward": False}, [], ""),
    "forward only, wrong": (Flex, lambda: Flex(0.5), {"backward": False}, ["out"], ""),
    "the original has no backward": (lambda: Doubled(16, 3), lambda: PlainlyDoubled(16, 3), {}, [], "no backward on"),
    "the port has none": (lambda: PlainlyDoubled(16, 3), lambda: Doubled(16, 3), {}, ["raised"], ""),
    "the original cannot be called again": (Once, Rounding, {}, [], "only once"),
    "no common module": (Flex, Flex, {"backward": False, "names": {"project": None, "": "elsewhere"}}, [], ""),
}


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("original", "port", "options", "failed", "words"), FORWARD_ONLY.values(), ids=FORWARD_ONLY)
def test_sides_without_a_backward(original: Any, port: Any, options: Any, failed: list[str], words: str) -> None:
    loss = lambda module, batch: module(batch).double().mean()  # noqa: E731
    report = single_step(Side(original, loss), Side(port, loss), torch.linspace(-2, 2, 32).reshape(2, 16), **options)
    assert [row.quantity for row in report.rows if row.status is Status.FAILED] == failed
    assert words in "; ".join([*report.report.notes, *(skip.reason for skip in report.report.skips)])
    assert "grad" not in {row.quantity for row in report.rows}
    assert bool(report.rows) == (original is not Once and "names" not in options)
    assert report.passed == bool(report.rows and not failed)
