"""Greedy drafting in plain torch: what a server must propose, and how much of it the verifier accepts.

Shapes: T tokens, h hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor


@dataclass
class Counts:
    """How often was drafted, and how many of the tokens at each place of the proposals were accepted."""

    drafts: int
    accepted_per_position: list[int]


def count_accepted(
    draft: Eagle3DraftModel, features: Tensor, prompt: Sequence[int], greedy: Sequence[int], length: int, size: int
) -> Counts:
    """Generate ``length`` tokens with proposals of ``size``, checked against the verifier's ``greedy`` tokens.

    ``features`` [T, 3h] are of the whole text; the last proposal may reach past ``length``, so ``greedy`` has ``size``
    tokens more. The verifier gives the first token alone, and one of its own after every proposal.
    """
    counts, done = Counts(0, [0] * size), 1
    while done < length:
        text = [*prompt, *greedy[:done]]
        proposal = propose(draft, features[: len(text) - 1], text, size)
        right = _agreeing(proposal, greedy[done : done + size])
        counts.drafts += 1
        for place in range(right):
            counts.accepted_per_position[place] += 1
        done += right + 1
    return counts


@torch.no_grad()
def propose(draft: Eagle3DraftModel, features: Tensor, text: Sequence[int], size: int) -> list[int]:
    """The ``size`` tokens that the draft expects after ``text`` [T + 1], whose last token has no features yet.

    Nothing is cached: every token is the end of one causal pass over features [T, 3h] and the draft's own outputs.
    """
    hidden, tokens = draft.fc(features)[None], list(text[1:])
    for _ in range(size):
        out = _pass(draft, torch.tensor([tokens]), hidden)
        best = int(draft.lm_head(draft.norm(out[0, -1])).argmax())
        tokens.append(best if draft.d2t is None else best + int(draft.d2t[best]))
        hidden = torch.cat([hidden, out[:, -1:]], dim=1)
    return tokens[-size:]


def _pass(draft: Eagle3DraftModel, ids: Tensor, hidden: Tensor) -> Tensor:
    length = ids.shape[1]
    blocked = torch.full((length, length), float("-inf")).triu(1)[None, None]
    out = torch.cat([draft.embed_tokens(ids), hidden], dim=-1)
    rotary = draft.rotary_emb(out, torch.arange(length)[None])
    for layer in draft.layers:
        out = layer(out, attention_mask=blocked, past_key_values=None, position_embeddings=rotary)
    return out


def _agreeing(proposal: Sequence[int], greedy: Sequence[int]) -> int:
    wrong = [place for place, (ours, theirs) in enumerate(zip(proposal, greedy, strict=True)) if ours != theirs]
    return wrong[0] if wrong else len(proposal)
