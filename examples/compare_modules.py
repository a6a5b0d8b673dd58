#!/usr/bin/env python3
"""Hold a hand-written decoder layer against transformers' Llama layer: a port that this project has never seen.

    parity run examples/compare_modules.py:PAIR [--report report.html]
    pytest --pair examples/compare_modules.py:PAIR
    python examples/compare_modules.py [report.html]

Exit code 0: they agree in everything, 1: not, and the last line says where it first goes wrong.
"""

from __future__ import annotations

import ports  # noqa: F401  # isort: skip  (a torchaudio of another build must not break transformers)

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from parity import Case, KitReport, Pair, Side, run_pair

CONFIG = LlamaConfig(
    hidden_size=48,
    intermediate_size=112,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    attn_implementation="sdpa",  # which is causal without a mask
)


class Attention(nn.Module):
    """Causal attention with rotary positions; query heads share key heads in consecutive groups."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, self.dim, self.theta = config.hidden_size, config.head_dim, 10000.0
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.wq = nn.Linear(width, config.num_attention_heads * self.dim, bias=False)
        self.wk = nn.Linear(width, config.num_key_value_heads * self.dim, bias=False)
        self.wv = nn.Linear(width, config.num_key_value_heads * self.dim, bias=False)
        self.wo = nn.Linear(config.num_attention_heads * self.dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, h] -> [B, T, h]."""
        q, k, v = (w(x).unflatten(-1, (-1, self.dim)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        q, k = self.rotate(q), self.rotate(k)
        k, v = (self.share(heads) for heads in (k, v))
        scores = (q @ k.mT / self.dim**0.5).masked_fill(self.hidden(x.shape[1]), float("-inf"))
        return self.wo((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def rotate(self, heads: Tensor) -> Tensor:
        """Half-split pairs, one frequency a pair."""
        rates = self.theta ** (-torch.arange(0, self.dim, 2) / self.dim)
        angles = torch.outer(torch.arange(heads.shape[2]).float(), rates)
        cos, sin = angles.cos(), angles.sin()
        left, right = heads.chunk(2, dim=-1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)

    def share(self, heads: Tensor) -> Tensor:
        """[B, key heads, T, e] -> [B, query heads, T, e]."""
        return heads.repeat_interleave(self.groups, dim=1)

    def hidden(self, length: int) -> Tensor:
        """bool [T, T]: what a position does not see."""
        return torch.ones(length, length, dtype=torch.bool).triu(1)


class FeedForward(nn.Module):
    """The gated SiLU unit."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, h] -> [B, T, h]."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, hidden_states: Tensor, **_: object) -> Tensor:
        """[B, T, h] -> [B, T, h]."""
        x = hidden_states + self.attention(self.attention_norm(hidden_states))
        return x + self.feed_forward(self.ffn_norm(x))


NAMES = {
    "input_layernorm": "attention_norm",
    "self_attn": "attention",
    **{f"self_attn.{x}_proj": f"attention.w{x}" for x in "qkvo"},
    "post_attention_layernorm": "ffn_norm",
    "mlp": "feed_forward",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.act_fn": None,
}


def batches(length: int = 11, count: int = 2) -> list[dict[str, object]]:
    """What both sides are called with."""
    draw = torch.Generator().manual_seed(0)
    hidden = [torch.randn(2, length, CONFIG.hidden_size, generator=draw) for _ in range(count)]
    positions = torch.arange(length)[None]
    rotary = LlamaRotaryEmbedding(CONFIG)(hidden[0], positions)
    return [{"hidden_states": x, "position_embeddings": rotary} for x in hidden]


ORIGINAL = Side(lambda: LlamaDecoderLayer(CONFIG, layer_idx=0), name="transformers")
PORT = Side(lambda: Block(CONFIG), name="hand-written")


PAIR = Pair("block", ORIGINAL, PORT, [Case("block", batches())], NAMES)


def compare() -> KitReport:
    """Everything: outputs, loss, gradients, optimizer step, curve, checkpoint, resume."""
    return run_pair(PAIR)


if __name__ == "__main__":
    report = compare()
    print(report)
    for page in map(Path, sys.argv[1:]):
        report.write_html(page)
    sys.exit(not report.passed)
