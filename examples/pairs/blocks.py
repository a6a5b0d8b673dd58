"""What the pairs of DSpark and DFlash share: data, the sizes of their blocks, an optimizer, one core in Speculators.

Shapes: N blocks of B slots in T positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from parity import KnownDifference, keep_from_build

CORE = "speculators.models.dflash.core"
T, B, N, STEPS, WARMUP, RATE = 37, 4, 6, 8, 2, 6e-4


def sequences(spans: Sequence[tuple[int, int]], width: int, tokens: int, **more: Any) -> list[dict[str, Any]]:
    """Two batches of one sequence each, as Speculators' forward takes them; the tokens of the spans are in the loss."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.tensor([[any(begin <= place < end for begin, end in spans) for place in range(T)]]).long()
    states = [[torch.randn(1, T, size, generator=draw) for size in (2 * width, width)] for _ in range(2)]
    ids = [torch.randint(tokens, (1, T), generator=draw) for _ in range(2)]
    rest = {"loss_mask": mask, "document_ids": torch.zeros_like(mask), "max_anchors": N, **more}
    return [dict(rest, hidden_states=x, verifier_last_hidden_states=y, input_ids=z) for (x, y), z in zip(states, ids)]


def rate(step: int) -> float:
    """Of both originals' warm-up and cosine, over the peak rate."""
    turns = [1 + math.cos(math.pi * n / (STEPS - WARMUP)) for n in (step - WARMUP, 1)]
    return (step + 1) / WARMUP if step < WARMUP else turns[0] / turns[1]


FROZEN = [f"{name}.weight.requires_grad" for name in ("embed_tokens", "lm_head", "verifier_lm_head", "verifier_norm")]
ATTENTION = "config.transformer_layer_config._attn_implementation", "_create_mask_fn"
KNOWN = [
    KnownDifference(
        "schedule", "from lr / 2, once past the peak", lambda x: replace(x, schedule=lambda y: LambdaLR(y, rate))
    ),
    KnownDifference(
        "decay", "no weight decay", lambda x: replace(x, optimizer=lambda y: AdamW(y, RATE, weight_decay=0.0))
    ),
    KnownDifference("frozen", "what is frozen stays so when opened again", keep_from_build(*FROZEN)),
    KnownDifference("attention", "opens with the attention that it was trained with", keep_from_build(*ATTENTION)),
]
BATCH = {"ids": "input_ids", "mask": "loss_mask", "features": "hidden_states", "target": "verifier_last_hidden_states"}
UNSEEN = {
    "inside the port's schedule, under known difference schedule": "the original's rates run in its place",
    "inside the port's optimizer, under known difference decay": "an AdamW without decay runs in its place",
}
