"""nanoGPT's own model, from a checkout, against transformers' GPT-2: the same architecture, written twice.

    parity run examples/pairs/nanogpt.py:NANOGPT --original DIR

A tiny config of odd sizes. transformers stores what a linear layer multiplies by the other way round, and its
activation is the exact one here, as nanoGPT's is. Weight decay is on matrices alone, on both sides.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parity import Case, Clip, Fused, NameMap, Pair, Side, View
from parity.names import transposed

LAYERS, WIDTH, HEADS, VOCABULARY, LENGTH = 2, 48, 3, 101, 29
TRANSPOSED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def batches(count: int) -> list[dict[str, Tensor]]:
    """Ids and their successors, int64 [4, 29] each, as nanoGPT's loader cuts them from a text."""
    generator = torch.Generator().manual_seed(7)
    texts = [torch.randint(0, VOCABULARY, (4, LENGTH + 1), generator=generator) for _ in range(count)]
    return [{"idx": text[:, :-1], "targets": text[:, 1:].contiguous()} for text in texts]


def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW at 1e-3, betas (0.9, 0.95), decay 0.1 on matrices."""
    groups: list[dict[str, Any]] = [
        {"params": [value for value in parameters if value.dim() > 1], "weight_decay": 0.1},
        {"params": [value for value in parameters if value.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))


def original(root: Path) -> Side:
    """nanoGPT's ``GPT``, built and given its optimizer as its script does both."""

    def build() -> nn.Module:
        sys.path.insert(0, str(root))
        from model import GPT, GPTConfig

        sizes = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "vocab_size": VOCABULARY, "block_size": 64}
        built: nn.Module = GPT(GPTConfig(**sizes, dropout=0.0, bias=True))
        return built

    def of_model(model: Any) -> Any:
        return model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")

    return Side(build, lambda model, batch: model(**batch)[1], of_model, clip=Clip("norm", 1.0), step=Clip("norm", 1.0))


def port() -> Side:
    """transformers' GPT-2 of the same sizes."""

    def build() -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "vocab_size": VOCABULARY, "n_positions": 64}
        off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return GPT2LMHeadModel(GPT2Config(**sizes, **off, activation_function="gelu", attn_implementation="sdpa"))

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = model(input_ids=batch["idx"]).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())

    return Side(build, loss, optimizer, clip=Clip("norm", 1.0), step=Clip("norm", 1.0))


def matrices() -> list[Fused]:
    """What the port stores the other way round."""
    return [
        transposed(f"transformer.h.{layer}.{name}.weight", f"transformer.h.{layer}.{name}.weight")
        for layer in range(LAYERS)
        for name in TRANSPOSED
    ]


NANOGPT = Pair(
    "nanogpt",
    None,
    port(),
    [Case("shakespeare", batches(4), steps=20)],
    names=NameMap(
        {f"transformer.h.{layer}.mlp.gelu": f"transformer.h.{layer}.mlp.act" for layer in range(LAYERS)},
        fused=matrices(),
    ),
    views=[View("mb0.call.transformer.wpe#0.*", original=lambda positions, trace: positions[None])],
    live=original,
    remedy="git clone https://github.com/karpathy/nanoGPT DIR && git -C DIR checkout 3adf61e1",
)
