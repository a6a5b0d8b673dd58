"""Digests of tensors."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ports.training.shards import whole


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """Names, dtypes, shapes and bytes; every process must ask where they are sharded."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        plain = whole(value.detach()).cpu().contiguous().view(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
