"""Tensors that lie in shards on several processes, as FSDP2 holds parameters, their gradients and Adam's moments.

Where nothing is sharded every tensor is given back as it is.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers of so many bytes."""


def full_tensor(value: Tensor) -> Tensor:
    """All of ``value``; every process must ask for it, in the same order."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def own_part(value: Tensor) -> Tensor:
    """This process' shard, in the memory of ``value``."""
    return value.to_local() if isinstance(value, DTensor) else value


def sharded_like(other: Tensor, value: Tensor) -> Tensor:
    """``value`` [of the shape of ``other``] on its device and in its shards; nobody is asked."""
    value = value.to(other.device)
    if not isinstance(other, DTensor):
        return value
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)


def reshard(module: nn.Module) -> None:
    """Let go of the whole parameters that a forward without a backward leaves in place of their shards."""
    for each in module.modules():
        if isinstance(each, FSDPModule):
            each.reshard()


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """Of names, dtypes, shapes and bytes; every process must ask."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        plain = full_tensor(value.detach()).cpu().contiguous().view(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def sums_of_bits(module: nn.Module) -> Tensor:
    """[N] int64: of every trained tensor, as far as it lies on this process, the sum of its words: any bit shows."""
    parts = [own_part(value.detach()).contiguous() for value in module.parameters() if value.requires_grad]
    return torch.stack([part.view(WORDS[part.element_size()]).sum(dtype=torch.int64) for part in parts])
