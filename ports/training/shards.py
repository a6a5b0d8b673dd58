"""Tensors that lie in shards on several processes, as FSDP2 holds parameters, their gradients and Adam's moments.

Where nothing is sharded every function gives back what it was given.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Tensor) -> Tensor:
    """All of ``value``; every process must ask for it, in the same order."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def own_part(value: Tensor) -> Tensor:
    """This process' shard, in the memory of ``value``."""
    return value.to_local() if isinstance(value, DTensor) else value


def sharded_like(other: Tensor, value: Tensor) -> Tensor:
    """``value``, which every process holds whole, on the device and in the shards of ``other``; nobody is asked."""
    value = value.to(other.device)
    if not isinstance(other, DTensor):
        return value
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
