"""Digests of tensors."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """Names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        plain = value.detach().cpu().contiguous().view(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
