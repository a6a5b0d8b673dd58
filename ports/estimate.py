"""What training will take of a device's memory, before anything is loaded.

Bytes of weights and optimizer are counted, activations measured: the draft is built without its weights
and run at two short lengths on the CPU. What autograd keeps for the backward grows linearly with the number of tokens,
since no tensor of the fast paths is quadratic in it.
"""

from __future__ import annotations

from typing import Any

import torch
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from torch import Tensor

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


def training_memory(
    config: Eagle3SpeculatorConfig | HassSpeculatorConfig,
    ttt_steps: int,
    tokens: int,
    supervised: float,
    gpus: int,
    half: bool = True,
) -> dict[str, int]:
    """Bytes of a micro-batch of ``tokens``, of which the share ``supervised`` is in the loss, ``half``: bf16 autocast.

    ``activations`` is what autograd keeps, ``target`` the verifier's probabilities. On several devices
    DistributedDataParallel holds the gradients once more, in its buckets.
    """
    objective = build_objective(config, ttt_steps)
    short, long = (kept_bytes(objective, length, round(length * supervised), half) for length in PROBES)
    slope = (long - short) / (PROBES[1] - PROBES[0])
    return {
        **held_bytes(objective, gpus),
        "activations": round(short + slope * (tokens - PROBES[0])),
        "target": FLOAT * round(tokens * supervised) * len(objective.output()[1]),
    }


def held_bytes(objective: Any, gpus: int) -> dict[str, int]:
    """What a device holds of a draft and its optimizer, whatever the batch."""
    sizes = {True: 0, False: 0}
    for parameter in objective.draft.parameters():
        sizes[parameter.requires_grad] += FLOAT * parameter.numel()
    buckets = sizes[True] if gpus > 1 else 0
    return {"weights, gradients, Adam": COPIES * sizes[True], "frozen": sizes[False], "DDP buckets": buckets}


def build_objective(config: Eagle3SpeculatorConfig | HassSpeculatorConfig, ttt_steps: int) -> Any:
    """The objective of an untrained draft on the CPU, its memory not touched; nothing of the verifier's is read."""
    config.transformer_layer_config._attn_implementation = attention_name(Alignment.PROTOTYPE)
    hass = isinstance(config, HassSpeculatorConfig)
    with torch.device("meta"):
        draft = HassDraftModel(config) if hass else thaw_head(Eagle3DraftModel(config))
    draft = draft.to_empty(device="cpu")
    draft.config.speculators_config = None
    return HassObjective(draft, ttt_steps, topk=1) if hass else Eagle3Objective(draft, ttt_steps)


def drawn_batch(objective: Any, tokens: int, supervised: int) -> dict[str, Tensor]:
    """A row of ``tokens``, of which the first ``supervised`` are in the loss."""
    size = objective.draft.config.transformer_layer_config.hidden_size
    ones = torch.ones(1, tokens, dtype=torch.int64)
    return {
        "input_ids": torch.zeros_like(ones),
        "attention_mask": ones,
        "loss_mask": (torch.arange(tokens) < supervised).long()[None],
        "features": torch.randn(1, tokens, size * (1 if isinstance(objective, HassObjective) else 3)),
        "target": torch.randn(1, tokens, size),
    }


def kept_bytes(objective: Any, tokens: int, rows: int, half: bool = True) -> int:
    """What autograd keeps from the forward of one row of ``tokens``, ``rows`` of them in the loss.

    Parameters are left out.
    """
    own = {value.untyped_storage().data_ptr() for value in (*objective.parameters(), *objective.buffers())}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    batch = drawn_batch(objective, tokens, rows)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), autocast:
        outcome = objective(batch)  # held until all is counted, so that no address is given twice
    del outcome
    return sum(kept.values())
