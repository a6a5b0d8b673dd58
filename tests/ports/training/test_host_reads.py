"""How often a training loop waits for its device: at most once for each line that it logs.

No card is needed to count it. ``.to(device)`` makes a copy here, as it would on a card, and whatever is computed from
such copies, or from weights, lies on "the device". Reading any of it as a number waits for the device.
"""

from collections import defaultdict

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ports.training.observer import Observer

ATEN = torch.ops.aten
READING = {
    *(ATEN._local_scalar_dense, ATEN.nonzero, ATEN.equal, ATEN.masked_select, ATEN.unique_consecutive, ATEN._unique2),
    *(ATEN.is_nonzero, ATEN.unique_dim, ATEN.bincount),
}
COPYING = {Tensor.tolist, Tensor.cpu, Tensor.numpy}


class Device(TorchDispatchMode):
    """Knows what lies on "the device", and keeps ``reads``: by micro-batch, what waited for it."""

    def __init__(self):
        super().__init__()
        self.reads = defaultdict(list)
        self.micro_batch, self._there = -1, {}

    def put(self, *tensors):
        for each in tensors:
            storage = each.untyped_storage()
            self._there[storage._cdata] = storage  # held, so that no other gets its address

    def holds(self, *arguments):
        leaves = tree_leaves(arguments)
        return any(isinstance(each, Tensor) and each.untyped_storage()._cdata in self._there for each in leaves)

    def read(self, name):
        self.reads[self.micro_batch].append(name)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there, packet = self.holds(args, kwargs), func.overloadpacket
        by_mask = packet in (ATEN.index, ATEN.index_put_) and any(
            isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        counted = packet is ATEN.repeat_interleave and not (kwargs or {}).get("output_size")
        if there and (packet in READING or by_mask or counted):
            self.read(str(packet))
        out = func(*args, **(kwargs or {}))
        if there:
            self.put(*(each for each in tree_leaves(out) if isinstance(each, Tensor)))
        return out


class Moves(TorchFunctionMode):
    """``.to(device)`` copies; what copies to the host is told."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in COPYING and self.device.holds(args[0]):
            self.device.read(func.__name__)
        out = func(*args, **(kwargs or {}))
        to_device = any(isinstance(each, torch.device) for each in args[1:])
        if func is Tensor.to and to_device and not self.device.holds(args[0]):
            out = out.clone()
            self.device.put(out)
        return out


class Steps(Observer):
    """Tells the device which micro-batch it is; reads a loss of its own where a fault is ``planted``."""

    def __init__(self, device, planted):
        self.device, self.planted = device, planted

    def batch(self, micro_batch, batch):
        self.device.micro_batch = micro_batch

    def outcome(self, micro_batch, outcome):
        if self.planted:
            float(outcome.loss)


def reads_of(start_run, cpdir, algorithm, planted=False, **options):
    device = Device()
    loop = start_run(algorithm, cpdir, Steps(device, planted), **options)
    device.put(*loop.objective.parameters(), *loop.objective.buffers())
    with Moves(device), device:
        for _ in loop.optimizer_steps():
            device.micro_batch = -1
    assert loop.micro_batch >= 6
    return {step: device.reads[step] for step in range(2, loop.micro_batch)}  # before: whether the weights move


RUNS = [
    ("eagle3", {}),
    ("eagle3", {"packing": True, "bs": 2, "epoch": 2}),
    ("hass", {}),
    ("hass", {"gradient_accumulation_steps": 2}),
]


@pytest.mark.parametrize(("algorithm", "options"), RUNS, ids=str)
def test_the_host_waits_for_its_device_once_a_logged_step(start_run, tmp_path, algorithm, options):
    found = reads_of(start_run, tmp_path / "cp", algorithm, **options)
    assert {step: reads for step, reads in found.items() if len(reads) != 1} == {}


def test_one_read_more_is_seen(start_run, tmp_path):
    found = reads_of(start_run, tmp_path / "cp", "eagle3", planted=True)
    assert {len(reads) for reads in found.values()} == {2}
