"""Device memory of a training step: weights and optimizer counted, activations measured.

The draft is built without its weights and run at two short lengths on the CPU; what autograd keeps for the backward
grows linearly with the number of tokens, since no tensor of the fast paths is quadratic in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from torch import Tensor, nn

from ports.eagle3.model import thaw_head
from ports.eagle3.objective import Eagle3Objective
from ports.hass.config import HassSpeculatorConfig
from ports.hass.model import HassDraftModel
from ports.hass.objective import HassObjective
from ports.training.alignment import Alignment
from ports.training.attention import attention_name

PROBES = (16, 48)
"""Tokens of the two measured batches."""

FLOAT = 4
"""Bytes of a float32: weights, gradients, Adam's two moments and the verifier's probabilities."""

COPIES = 4
"""Of a trained parameter: itself, its gradient and two moments."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device.

    ``activations`` is what autograd keeps, ``target`` the verifier's probabilities, ``buckets`` DDP's.
    """

    trained: int
    frozen: int
    activations: int
    target: int
    buckets: int

    @property
    def total(self) -> int:
        """Without the kernels' workspace and the allocator's gaps."""
        return self.trained + self.frozen + self.activations + self.target + self.buckets


def build_objective(config: Eagle3SpeculatorConfig | HassSpeculatorConfig, ttt_steps: int, device: str) -> Any:
    """The objective of an untrained draft, its memory not touched."""
    config.transformer_layer_config._attn_implementation = attention_name(Alignment.PROTOTYPE)
    with torch.device("meta"):
        if isinstance(config, HassSpeculatorConfig):
            draft: Any = HassDraftModel(config)
        else:
            draft = thaw_head(Eagle3DraftModel(config))
    draft.to_empty(device=device)
    if isinstance(config, HassSpeculatorConfig):
        return HassObjective(draft, ttt_steps, topk=1)
    return Eagle3Objective(draft, ttt_steps)


def training_memory(
    config: Eagle3SpeculatorConfig | HassSpeculatorConfig, ttt_steps: int, tokens: int, supervised: float, gpus: int
) -> TrainingMemory:
    """Of a micro-batch of ``tokens``, of which the share ``supervised`` is in the loss, in bf16 autocast.

    On several devices DistributedDataParallel holds the gradients once more, in its buckets.
    """
    objective = build_objective(config, ttt_steps, "cpu")
    parameters = list(objective.draft.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    vocabulary = len(objective.output()[1])
    rows = round(tokens * supervised)
    short, long = (kept_bytes(objective, length, round(length * supervised)) for length in PROBES)
    slope = (long - short) / (PROBES[1] - PROBES[0])
    return TrainingMemory(
        trained=COPIES * FLOAT * trained,
        frozen=FLOAT * frozen,
        activations=round(short + slope * (tokens - PROBES[0])),
        target=FLOAT * rows * vocabulary,
        buckets=FLOAT * trained if gpus > 1 else 0,
    )


def kept_bytes(objective: Any, tokens: int, rows: int) -> int:
    """What autograd keeps from the forward of one row of ``tokens``, ``rows`` of them in the loss.

    Parameters are left out.
    """
    own = {value.untyped_storage().data_ptr() for value in _own_tensors(objective)}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    batch = _batch(objective, tokens, rows)
    unpack: Callable[[Tensor], Tensor] = lambda value: value  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack), torch.autocast("cpu", torch.bfloat16):
        outcome = objective(batch)
    del outcome
    return sum(kept.values())


def _own_tensors(objective: nn.Module) -> list[Tensor]:
    return [*objective.parameters(), *objective.buffers()]


def _batch(objective: Any, tokens: int, rows: int) -> dict[str, Tensor]:
    layer = objective.draft.config.transformer_layer_config
    width = layer.hidden_size * (1 if isinstance(objective, HassObjective) else 3)
    ones = torch.ones(1, tokens, dtype=torch.int64)
    return {
        "input_ids": torch.zeros_like(ones),
        "attention_mask": ones,
        "loss_mask": (torch.arange(tokens)[None] < rows).long(),
        "features": torch.randn(1, tokens, width),
        "target": torch.randn(1, tokens, layer.hidden_size),
    }
