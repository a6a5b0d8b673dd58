from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from parity.prototypes.original.recorder import LoopWatch, StepLimitError, heard


class Heard:
    """Listens as a recorder does."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[Any] = []

    def begin(self, epoch: int, batch: dict[str, torch.Tensor]) -> None:
        self.begun.append(epoch)

    def end(self, names: dict[str, Any], synced: bool) -> None:
        self.ended.append((names["seen"], synced))


def watched(*options: Any) -> LoopWatch:
    watch = LoopWatch(*options)
    watch.accelerator = SimpleNamespace(sync_gradients=True)
    return watch


def test_the_recorder_sees_the_local_names_of_the_loop() -> None:
    recorder = Heard()
    watch = watched(recorder)
    watch([{}] * 5)  # the scripts build one bar that is never used
    for _ in range(2):
        for seen, _batch in enumerate(watch([{}] * 2, dynamic_ncols=True)):
            assert seen < 2
    assert recorder.begun == [0, 0, 1, 1]
    assert recorder.ended == [(0, True), (1, True)] * 2
    assert len(watch.seconds) == 4


def test_the_loop_ends_after_enough_steps() -> None:
    watch, seen = watched(None, 3), []
    with pytest.raises(StepLimitError):
        seen.extend(number for number, _batch in enumerate(watch([{}] * 9)))
    assert seen == [0, 1, 2]


def test_micro_batches_of_a_step_are_added_up_and_flops_counted_in_the_first() -> None:
    watch = watched()
    weight = torch.ones(3, 4, requires_grad=True)
    for number, _batch in enumerate(watch([{}] * 4)):
        watch.accelerator.sync_gradients = number % 2 == 1
        (torch.ones(2, 3) @ weight).sum().backward()
    assert len(watch.seconds) == len(watch.cpu_seconds) == 2
    assert watch.first_step_flops == 2 * 2 * (2 * 3 * 4 * 2)


def test_a_heard_function_gets_and_gives_what_it_did() -> None:
    owner, told = SimpleNamespace(add=lambda a, b=0: a + b), []
    heard(owner, "add", lambda a: told.append(("before", a)), lambda result, a: told.append((result, a)))
    assert owner.add(2, b=3) == 5
    assert told == [("before", 2), (5, 2)]
