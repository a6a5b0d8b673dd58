"""What DeepSpeed ZeRO-2 holds beside the module: its settings and the float32 master weights."""

from __future__ import annotations

import math
from typing import Any

import torch

_EMBEDDING = "embed_tokens.weight"
_WEIGHT_DECAY = 0.01


def master_weights(engine: Any) -> torch.Tensor:
    """The flat float32 copy of every parameter, in the order of the module's parameters."""
    groups: list[torch.Tensor] = engine.optimizer.single_partition_of_fp32_groups
    return torch.cat([group.detach().reshape(-1) for group in groups]).clone()


def describe(engine: Any, embedding: torch.Tensor, rates: list[float]) -> dict[str, Any]:
    """The ``deepspeed`` entry of ``meta.json``; ``embedding`` is the initial one, ``rates`` the learning rates used."""
    groups: list[torch.Tensor] = engine.optimizer.single_partition_of_fp32_groups
    start = _offset(engine.module)
    final = master_weights(engine)[start : start + embedding.numel()]
    return {
        "optimizer": type(engine.optimizer).__name__,
        "base_optimizer": type(engine.optimizer.optimizer).__name__,
        "config": engine.config,
        "module_param_dtypes": sorted({str(value.dtype) for value in engine.module.parameters()}),
        "fp32_master": [f"{group.dtype}{tuple(group.shape)}" for group in groups],
        "embed_master_offset": start,
        "embed_master_norm_ratio": (final.double().norm() / embedding.double().norm()).item(),
        "weight_decay_product": math.prod(1 - rate * _WEIGHT_DECAY for rate in rates),
    }


def _offset(module: torch.nn.Module) -> int:
    start = 0
    for name, value in module.named_parameters():
        if name == _EMBEDDING:
            return start
        start += value.numel()
    raise LookupError(_EMBEDDING)
