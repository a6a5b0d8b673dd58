"""Drafts that propose tokens one by one: what is particular to each algorithm, and the chain they share.

Shapes: B rows, Q tokens, h hidden size, F width of the features, k size of a proposal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ports.evaluate.memory import Memory


@dataclass
class Block:
    """Tokens that became part of the texts, each with the verifier's features of the token before it.

    ``ids`` and ``positions`` [B, Q] int64 (positions are those of the features), ``features`` [B, Q, F]; ``fresh``
    [B, Q] is true on the tokens that are really there, the first ones of every row and at least one.
    """

    ids: Tensor
    features: Tensor
    positions: Tensor
    fresh: Tensor


class Drafter(ABC):
    """A draft model that reads (token, hidden state) pairs."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.model.config.transformer_layer_config._attn_implementation = "sdpa"

    @abstractmethod
    def features(self, states: Sequence[Tensor]) -> Tensor:
        """[B, Q, F] from the verifier's n+1 hidden states [B, Q, h], the last of them after its final norm."""

    @abstractmethod
    def enter(self, features: Tensor) -> Tensor:
        """The hidden states [B, Q, h] that features stand for."""

    @abstractmethod
    def fuse(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """What the first layer reads, [B, Q, h or 2h]."""

    @abstractmethod
    def choose(self, out: Tensor) -> Tensor:
        """The likeliest verifier ids [B] after outputs [B, h]."""

    @torch.no_grad()
    def propose(self, memory: Memory, block: Block, size: int) -> Tensor:
        """The ``size`` tokens [B, k] that the draft expects after the block; only the block stays in memory."""
        rows, last = torch.arange(len(block.ids), device=block.ids.device), block.fresh.sum(1) - 1
        hidden = self._run(memory, block.ids, self.enter(block.features), block.positions, block.fresh)[rows, last]
        position, kept, tokens = block.positions[rows, last], memory.slots, [self.choose(hidden)]
        for step in range(1, size):
            token, where = tokens[-1][:, None], position[:, None] + step
            hidden = self._run(memory, token, hidden[:, None], where, torch.ones_like(token, dtype=torch.bool))[:, 0]
            tokens.append(self.choose(hidden))
        memory.crop(kept)
        return torch.stack(tokens, dim=1)

    def _run(self, memory: Memory, ids: Tensor, hidden: Tensor, positions: Tensor, fresh: Tensor) -> Tensor:
        """The layers' outputs [B, Q, h]."""
        memory.announce(fresh, positions)
        mask, out = memory.visible(ids.shape[1]), self.fuse(ids, hidden)
        rotary = self.model.rotary_emb(out, positions)
        for layer in self.model.layers:
            out = layer(out, attention_mask=mask, past_key_values=memory.cache, position_embeddings=rotary)
        return out


class Eagle3Drafter(Drafter):
    """Speculators' Eagle3 draft: features of several layers, a vocabulary of its own."""

    def features(self, states: Sequence[Tensor]) -> Tensor:
        return torch.cat([states[layer] for layer in self.model.config.eagle_aux_hidden_state_layer_ids], dim=-1)

    def enter(self, features: Tensor) -> Tensor:
        hidden: Tensor = self.model.fc(features.to(self.model.fc.weight.dtype))
        return hidden

    def fuse(self, ids: Tensor, hidden: Tensor) -> Tensor:
        return torch.cat([self.model.embed_tokens(ids).to(hidden.dtype), hidden], dim=-1)

    def choose(self, out: Tensor) -> Tensor:
        best: Tensor = self.model.lm_head(self.model.norm(out)).argmax(-1)
        return best if self.model.d2t is None else best + self.model.d2t[best]


class HassDrafter(Drafter):
    """The HASS draft: the verifier's last hidden state, the verifier's vocabulary and head."""

    def features(self, states: Sequence[Tensor]) -> Tensor:
        return states[-1]

    def enter(self, features: Tensor) -> Tensor:
        return features.to(self.model.fc.weight.dtype)

    def fuse(self, ids: Tensor, hidden: Tensor) -> Tensor:
        embeds = self.model.embed(ids).to(hidden.dtype)
        fused: Tensor = self.model.fc(torch.cat([embeds, self.model.hidden_layernorm(hidden)], dim=-1))
        return fused

    def choose(self, out: Tensor) -> Tensor:
        best: Tensor = self.model.lm_head(self.model.lm_head_layernorm(out)).argmax(-1)
        return best
