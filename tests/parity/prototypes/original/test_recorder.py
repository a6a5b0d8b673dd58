from types import SimpleNamespace

import torch

from parity.prototypes.original.recorder import LoopWatch


def test_micro_batches_of_a_step_are_added_up_and_flops_counted_in_the_first():
    watch = LoopWatch()
    watch.accelerator = SimpleNamespace(sync_gradients=True)
    weight = torch.ones(3, 4, requires_grad=True)
    for number, _batch in enumerate(watch([{}] * 4)):
        watch.accelerator.sync_gradients = number % 2 == 1
        (torch.ones(2, 3) @ weight).sum().backward()
    assert len(watch.seconds) == len(watch.cpu_seconds) == 2
    assert watch.first_step_flops == 2 * 2 * (2 * 3 * 4 * 2)
