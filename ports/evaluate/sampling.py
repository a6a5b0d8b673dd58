"""How tokens are chosen from logits: the likeliest, or drawn so that the verifier's distribution is kept.

Shapes: B rows, k size of a proposal, V the verifier's vocabulary.

A proposal's token d was drawn from the draft's q; the verifier's distribution there is p. It is accepted with
probability min(1, p(d) / q(d)); where it is not, the text goes on with a token drawn from max(p - q, 0), normalised.
What comes out has distribution p: min(p, q) by the first way, and p - min(p, q) by the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ports.errors import InputError

COLDEST, HOTTEST = 0.01, 100.0
"""Temperatures between which logits can be divided in float32."""


@dataclass(frozen=True)
class Proposal:
    """``tokens`` [B, k] int64, drawn from ``probabilities`` [B, k, V] float32; None where nothing was drawn."""

    tokens: Tensor
    probabilities: Tensor | None = None


class Choice:
    """How draft and verifier choose: the likeliest token.

    Of the last proposal that was verified, ``expected`` [B, k] is how probable it was, before luck, that the tokens up
    to each were accepted; None where nothing is drawn.
    """

    expected: Tensor | None = None

    def pick(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """A place [B] in each row of logits [B, D], and what it was drawn from, [B, D], if it was drawn."""
        return logits.argmax(-1), None

    def verify(self, logits: Tensor, proposal: Proposal) -> tuple[Tensor, Tensor]:
        """Of a proposal and the verifier's logits [B, k+1, V] before and after its tokens, what the text grows by.

        Gives tokens [B, k+1] and how many [B] of the proposal are accepted: the first that many and one are the text's.
        """
        choices = logits.argmax(-1)
        return choices, (proposal.tokens == choices[:, :-1]).cumprod(1).sum(1)


class Sampling(Choice):
    """Draws at a ``temperature``, repeatable by ``seed`` for the same rows in the same order."""

    def __init__(self, temperature: float, seed: int, device: torch.device) -> None:
        self.temperature, self.generator = temperature, torch.Generator(device).manual_seed(seed)

    def pick(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """See :class:`Choice`."""
        probabilities = self._probabilities(logits)
        return self._draw(probabilities), probabilities

    def verify(self, logits: Tensor, proposal: Proposal) -> tuple[Tensor, Tensor]:
        """See :class:`Choice`, and the head of this file."""
        target, tokens = self._probabilities(logits), proposal.tokens
        drawn_from = torch.zeros_like(target)
        if proposal.probabilities is not None:
            drawn_from[:, :-1] = proposal.probabilities
        p, q = (each[:, :-1].gather(2, tokens[..., None])[..., 0] for each in (target, drawn_from))
        likely = acceptance(p, q)
        self.expected = chances(target[:, :-1], drawn_from[:, :-1], likely)
        luck = torch.rand(tokens.shape, generator=self.generator, device=tokens.device)
        accepted = (luck < likely).cumprod(1).sum(1)
        rows = torch.arange(len(tokens), device=tokens.device)
        own = self._draw(residual(target[rows, accepted], drawn_from[rows, accepted]))
        choices = torch.cat([tokens, own[:, None]], dim=1)
        choices[rows, accepted] = own
        return choices, accepted

    def _probabilities(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits.float() / self.temperature, dim=-1)

    def _draw(self, weights: Tensor) -> Tensor:
        return torch.multinomial(weights, 1, generator=self.generator)[:, 0]


def checked_logits(logits: Tensor, whose: str) -> Tensor:
    """Logits [..., V], as they are.

    Raises:
        InputError: NaN or Inf is the largest somewhere: whatever was chosen there would mean nothing.
    """
    if not bool(logits.amax(-1).isfinite().all()):
        raise InputError(whose, "logits", f"NaN or Inf in {logits.dtype}", "numbers; --dtype float32 has the most room")
    return logits


def acceptance(p: Tensor, q: Tensor) -> Tensor:
    """The probability of accepting a token that verifier and draft give ``p`` and ``q`` > 0; capped by its use at 1."""
    return p / q


def chances(p: Tensor, q: Tensor, likely: Tensor) -> Tensor:
    """How probable it is [B, k] that tokens are accepted up to each, whatever the last of them is.

    The tokens before are those of the proposal, accepted with probability ``likely`` [B, k]; the one there is accepted
    with sum(min(p, q)), over the distributions [B, k, V]. Its mean is that of what is accepted, with less noise.
    """
    before = likely.clamp(max=1).cumprod(1).roll(1, dims=1)
    before[:, :1] = 1
    return before * torch.minimum(p, q).sum(-1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Weights [B, V] of the token instead of a rejected one; ``p`` where rounding left nothing."""
    rest = (p - q).clamp(min=0)
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)


def choice_of(temperature: float, seed: int, device: torch.device) -> Choice:
    """Greedy at temperature 0.

    Raises:
        InputError: a temperature that is not to be divided by.
    """
    if temperature == 0:
        return Choice()
    if not COLDEST <= temperature <= HOTTEST:
        raise InputError("command line", "--temperature", temperature, f"0, or {COLDEST} to {HOTTEST:g}")
    return Sampling(temperature, seed, device)
