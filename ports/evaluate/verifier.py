"""The verifier's side of speculative decoding: it reads prompts, and checks proposals.

Shapes: B rows, Q tokens of a pass, K slots of the cache with them, h hidden size, F width of the features, k size of a
proposal.

A proposal d_1..d_k is checked in one pass over [t, d_1..d_k], where t is the last token of the text; it gives
logits after each of them. The first a tokens are accepted, and the text grows by them and one more: greedily, by the
verifier's own choices c_0..c_a, where a is the number of leading places with d_{i+1} = c_i. Drawn tokens:
:mod:`ports.evaluate.sampling`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache

from ports.evaluate.sampling import Choice, Proposal, checked_logits
from ports.verifier.attention import LOCAL, layer_types

Features = Callable[[Sequence[Tensor]], Tensor]
"""From the verifier's n+1 hidden states [B, Q, h] to features [B, Q, F]."""


class KVCache:
    """A key/value cache for rows of different lengths.

    Every pass writes Q slots for all rows at once; a row owns only those whose token is part of its text. The others
    stay as holes that nobody looks at. Rotary positions are put into the keys before they are stored, so holes shift
    nothing; masks are made from positions, where transformers would take slots for them.

    ``past_key_values`` is for transformers' layers; ``owned`` [B, K] is true on the slots that a row reads,
    ``positions`` [B, K].
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.past_key_values = DynamicCache()
        self.owned = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        self.positions = torch.zeros(rows, 0, dtype=torch.int64, device=device)

    @property
    def slots(self) -> int:
        """How many slots were written, K."""
        return self.owned.shape[1]

    def append(self, fresh: Tensor, positions: Tensor) -> None:
        """The next pass writes slots: ``fresh`` [B, Q] where a row owns them, at ``positions`` [B, Q] of its text."""
        self.owned = torch.cat([self.owned, fresh], dim=1)
        self.positions = torch.cat([self.positions, positions], dim=1)

    def accept(self, fresh: Tensor) -> None:
        """Of the last Q slots a row owns only ``fresh`` [B, Q]; the others become holes."""
        self.owned = torch.cat([self.owned[:, : self.slots - fresh.shape[1]], fresh], dim=1)

    def crop(self, slots: int) -> None:
        """Take back what was written after the first ``slots``."""
        if slots < self.slots:
            self.past_key_values.crop(slots - self.slots)
        self.owned, self.positions = self.owned[:, :slots], self.positions[:, :slots]

    def mask(self, width: int, kind: str, config: Any, dtype: torch.dtype) -> Tensor:
        """What is added to the scores [B, 1, Q, K] of the last Q = ``width`` slots in layers of type ``kind``.

        0 on owned slots up to the query's own that are near enough, else the smallest number of ``dtype``.
        """
        slots = torch.arange(self.slots, device=self.owned.device)
        seen = self.owned[:, None] & (slots <= slots[-width:, None])
        name, near = LOCAL.get(kind, ("", None))
        if near and (size := getattr(config, name, None)):
            seen = seen & near(self.positions[:, -width:, None], self.positions[:, None], size)
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[
            :, None
        ]


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


class TargetModel:
    """Texts that a verifier reads side by side; ``last`` [B] are their last tokens, which it has not read yet.

    ``logits`` [B, Q, V] of the last pass are those from which each token that it added was chosen.
    """

    last: Tensor
    logits: Tensor
    position: Tensor
    cache: KVCache

    def __init__(self, verifier: Any, features: Features | None = None, choice: Choice | None = None) -> None:
        self.verifier, self.features, self.choice = verifier, features, choice or Choice()
        self.config = verifier.config.get_text_config()

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Block:
        """Read the prompts, each of at least one token, and choose a token after each of them."""
        device = self.verifier.device
        ids = pad_sequence([torch.tensor(prompt, device=device) for prompt in prompts], batch_first=True)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        places, rows = torch.arange(ids.shape[1], device=device).expand_as(ids), torch.arange(len(ids), device=device)
        self.cache, fresh = KVCache(len(prompts), device), places < lengths[:, None]
        ends, of_row = lengths.sub(1).unique(return_inverse=True)
        logits, features = self._read(ids, places, fresh, ends)
        self.logits, self.position = logits[rows, of_row][:, None], lengths
        self.last = self.choice.pick(checked_logits(self.logits[:, 0], "verifier"))[0]
        following = ids.roll(-1, dims=1)
        following[rows, lengths - 1] = self.last
        return Block(following, features, places, fresh)

    def verify(self, proposal: Proposal) -> tuple[Block, Tensor]:
        """What becomes part of the texts, and how many tokens [B] of a proposal were accepted."""
        ids = torch.cat([self.last[:, None], proposal.tokens], dim=1)
        offsets = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        positions = self.position[:, None] + offsets
        self.logits, features = self._read(ids, positions, torch.ones_like(ids, dtype=torch.bool), offsets[0])
        choices, accepted = self.choice.verify(checked_logits(self.logits, "verifier"), proposal)
        fresh = offsets <= accepted[:, None]
        self.cache.accept(fresh)
        self.last, self.position = choices.gather(1, accepted[:, None])[:, 0], self.position + accepted + 1
        return Block(choices, features, positions, fresh), accepted

    @torch.no_grad()
    def _read(self, ids: Tensor, positions: Tensor, fresh: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Logits after the columns ``asked`` of ``ids``, and features of all; nothing [B, Q, 0] for plain decoding."""
        self.cache.append(fresh, positions)
        kinds, dtype = layer_types(self.config), self.verifier.dtype
        masks = {kind: self.cache.mask(ids.shape[1], kind, self.config, dtype) for kind in kinds}
        read = self.verifier(
            input_ids=ids,
            attention_mask=masks if len(kinds) > 1 else masks[kinds[0]],
            position_ids=positions,
            past_key_values=self.cache.past_key_values,
            use_cache=True,
            logits_to_keep=asked,
            output_hidden_states=self.features is not None,
        )
        nothing = ids.new_empty(*ids.shape, 0, dtype=torch.float32)
        logits = read.logits if read.logits.shape[1] == len(asked) else read.logits[:, asked]  # models that give all
        return logits, self.features(read.hidden_states) if self.features else nothing
