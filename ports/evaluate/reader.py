"""The verifier's side of speculative decoding: it reads prompts, and checks proposals.

Shapes: B rows, Q tokens, h hidden size, F width of the features, k size of a proposal.

A proposal d_1..d_k is checked in one pass over [t, d_1..d_k], where t is the last token of the text; the verifier's own
choices after each of them are c_0..c_k. With a the number of leading places where d_{i+1} = c_i, the text grows by
c_0..c_a: every token is a choice of the verifier, whatever the draft proposes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ports.evaluate.drafter import Block
from ports.evaluate.memory import Memory
from ports.evaluate.sight import sight

Features = Callable[[Sequence[Tensor]], Tensor]
"""From the verifier's n+1 hidden states [B, Q, h] to features [B, Q, F]."""


class Reader:
    """Texts that a verifier reads side by side; ``last`` [B] are their last tokens, which it has not read yet."""

    last: Tensor
    position: Tensor

    def __init__(self, verifier: Any, features: Features | None = None) -> None:
        self.verifier, self.features = verifier, features
        self.config = verifier.config.get_text_config()
        self.memory: Memory

    def start(self, prompts: Sequence[Sequence[int]]) -> Block:
        """Read the prompts, each of at least one token, and choose a token after each of them."""
        device = self.verifier.device
        ids = pad_sequence([torch.tensor(prompt, device=device) for prompt in prompts], batch_first=True)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        places = torch.arange(ids.shape[1], device=device).expand_as(ids)
        self.memory = Memory(len(prompts), device)
        choices, features = self._read(ids, places, places < lengths[:, None])
        rows = torch.arange(len(prompts), device=device)
        self.last, self.position = choices[rows, lengths - 1], lengths
        following = torch.cat([ids[:, 1:], ids[:, :1]], dim=1)
        following[rows, lengths - 1] = self.last
        return Block(following, features, places, places < lengths[:, None])

    def check(self, proposal: Tensor) -> tuple[Block, Tensor]:
        """What becomes part of the texts, and how many tokens [B] of a proposal [B, k] were accepted."""
        ids = torch.cat([self.last[:, None], proposal], dim=1)
        offsets = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        positions = self.position[:, None] + offsets
        choices, features = self._read(ids, positions, torch.ones_like(ids, dtype=torch.bool))
        accepted = (proposal == choices[:, :-1]).cumprod(1).sum(1)
        fresh = offsets <= accepted[:, None]
        self.memory.keep(fresh)
        self.last, self.position = choices.gather(1, accepted[:, None])[:, 0], self.position + accepted + 1
        return Block(choices, features, positions, fresh), accepted

    @torch.no_grad()
    def _read(self, ids: Tensor, positions: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest token after each of ``ids``, and the features of each; nothing [B, Q, 0] for plain decoding."""
        self.memory.announce(fresh, positions)
        read = self.verifier(
            input_ids=ids,
            attention_mask=sight(self.config, self.memory, ids.shape[1], self.verifier.dtype),
            position_ids=positions,
            past_key_values=self.memory.cache,
            use_cache=True,
            output_hidden_states=self.features is not None,
        )
        nothing = ids.new_empty(*ids.shape, 0, dtype=torch.float32)
        return read.logits.argmax(-1), self.features(read.hidden_states) if self.features else nothing
