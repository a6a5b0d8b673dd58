from __future__ import annotations

from typing import Any

import pytest
import torch

from parity.prototypes.original.watch import LoopWatch, StepLimitError


class Fake:
    sync_gradients = True


class Heard:
    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[Any] = []

    def begin(self, epoch: int, batch: dict[str, torch.Tensor]) -> None:
        self.begun.append(epoch)

    def end(self, names: dict[str, Any], synced: bool) -> None:
        self.ended.append((names["seen"], synced))


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    return [{"attention_mask": torch.ones(2, 3)} for _ in range(count)]


def watched(listener: Heard | None = None, limit: int | None = None, flops: bool = False) -> LoopWatch:
    watch = LoopWatch(listener, limit, flops)
    watch.accelerator = Fake()
    return watch


def test_the_listener_sees_the_local_names_of_the_loop() -> None:
    heard = Heard()
    watch = watched(heard)
    watch(batches(5))  # the scripts build one bar that is never used
    for _ in range(2):
        for seen, _batch in enumerate(watch(batches(2), dynamic_ncols=True)):
            assert seen < 2
    assert heard.begun == [0, 0, 1, 1]
    assert heard.ended == [(0, True), (1, True)] * 2
    assert len(watch.clock.seconds) == 4


def test_micro_batches_of_one_step_are_added_up() -> None:
    watch = watched()
    for number, _batch in enumerate(watch(batches(4))):
        watch.accelerator.sync_gradients = number % 2 == 1
    assert watch.clock.tokens == [12, 12]
    assert len(watch.clock.seconds) == len(watch.clock.cpu_seconds) == 2


def test_the_loop_ends_after_enough_steps() -> None:
    watch, seen = watched(limit=3), []
    with pytest.raises(StepLimitError):
        seen.extend(number for number, _batch in enumerate(watch(batches(9))))
    assert seen == [0, 1, 2]


def test_flops_of_the_first_step_only() -> None:
    watch = watched(flops=True)
    weight = torch.ones(3, 4, requires_grad=True)
    for _batch in watch(batches(2)):
        (torch.ones(2, 3) @ weight).sum().backward()
    assert watch.flops.total == 2 * (2 * 3 * 4 * 2)
