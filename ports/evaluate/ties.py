"""Is a token that drafting changed a near tie, which rounding decides, or a mistake?

A verifier reads a proposal in one pass and plain decoding reads its tokens one by one: the same sums in another order.
Where its first two choices are as good as equal, either may be taken, and the texts go apart from there. At the first
token that differs both decodings have logits, p and q; what they chose there is a near tie if

- each chose its own likeliest token,
- neither likeliest token leads the other's by more than 2 max|p - q|, and
- max|p - q| is no more than :data:`UNITS` units, where a unit is one rounding (torch's ``eps``) of the largest |logit|.

Else it is a mistake: of what the verifier remembers, of a mask or of what is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

UNITS = {torch.bfloat16: 10.0, torch.float16: 10.0, torch.float32: 256.0, torch.float64: 256.0}
"""How far apart rounding puts two logits of a token, by the precision that a verifier computes in.

Seen between passes of one token and of four, in SmolLM2-135M-Instruct on a CPU, at 188 places of 49,152 logits: at most
4.9 units in bfloat16, 4.4 in float16 and 24 in float32, whose products sum in float32 as those of the others do and so
lose more of their units.
"""


@dataclass(frozen=True)
class Verdict:
    """What two decodings say of the token in which they differ; ``margin`` and ``distance`` in logits.

    ``margin`` is by how much a likeliest token leads the other decoding's, the larger of both, ``distance`` max|p - q|,
    and ``units`` the same in roundings. All three are None where a decoding has no logits of both tokens.
    """

    near_tie: bool = False
    margin: float | None = None
    distance: float | None = None
    units: float | None = None


UNKNOWN = Verdict()


def verdict_on(plain: Tensor, drafted: Tensor, tokens: tuple[int, int], dtype: torch.dtype) -> Verdict:
    """Two decodings' logits [V] of one token, and the places [0, V) of what each chose, plain first.

    ``dtype`` is what the verifier computes in, whatever the logits are kept in.
    """
    first, second = plain.double().cpu(), drafted.double().cpu()
    leads = [float(logits.max() - logits[token]) for logits in (first, second) for token in tokens]
    distance, scale = float((first - second).abs().max()), float(torch.maximum(first.abs(), second.abs()).max())
    unit = torch.finfo(dtype).eps * scale
    margin, units = max(leads[1], leads[2]), distance / unit if unit else 0.0
    chosen = leads[0] == leads[3] == 0
    return Verdict(chosen and margin <= 2 * distance and units <= UNITS[dtype], margin, distance, units)


def verdict_on_likeliest(
    plain: Mapping[int, float], drafted: Mapping[int, float], tokens: tuple[int, int], dtype: torch.dtype
) -> Verdict:
    """:func:`verdict_on` from the logits of each decoding's likeliest tokens, over those that both name."""
    both = sorted(plain.keys() & drafted.keys())
    needed = {*tokens, max(plain, key=plain.__getitem__), max(drafted, key=drafted.__getitem__)} if both else {*tokens}
    if not needed.issubset(both):
        return UNKNOWN
    first, second = (torch.tensor([logits[token] for token in both]) for logits in (plain, drafted))
    return verdict_on(first, second, (both.index(tokens[0]), both.index(tokens[1])), dtype)


def described(found: dict[str, Any]) -> str:
    """A difference in words: both tokens, and a :class:`Verdict` in JSON types."""
    words = f"{found['plain']} without the draft, {found['drafted']} with it"
    if found["margin"] is None:
        return f"{words}: no near tie, one decoding has no logits of both"
    numbers = f"margin {found['margin']:.3g}, logits {found['distance']:.3g} or {found['units']:.3g} roundings apart"
    return f"{words}: {'near tie' if found['near_tie'] else 'no near tie'}, {numbers}"
