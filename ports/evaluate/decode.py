"""Decoding of several prompts at once, plain or with proposals of a draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ports.evaluate.drafter import Drafter
from ports.evaluate.sampling import Choice, Proposal
from ports.evaluate.ties import UNKNOWN, Verdict, verdict_on
from ports.evaluate.verifier import KVCache, TargetModel


@dataclass(frozen=True)
class Limits:
    """An answer has ``length`` tokens, or fewer if it ends with one of ``stop``."""

    length: int
    stop: frozenset[int] = frozenset()

    def reached(self, tokens: Sequence[int]) -> bool:
        """Is this answer at its end, or past it?"""
        return len(tokens) >= self.length or not self.stop.isdisjoint(tokens)

    def share(self, answer: Answer) -> float:
        """How much of it there is, as far as can be told."""
        return 1 if self.reached(answer.tokens) else len(answer.tokens) / self.length

    def cut(self, tokens: Sequence[int]) -> list[int]:
        """Without what lies past the end."""
        ends = [place + 1 for place, token in enumerate(tokens) if token in self.stop]
        return list(tokens[: min([self.length, *ends])])


@dataclass
class Answer:
    """The ``tokens`` after one prompt, how many tokens of each proposal were ``accepted``, and the ``plain`` tokens, if
    it was decoded without a draft too; then ``logits`` [V] of the first token that is another, and the ``verdict``.

    Of drawn ones ``expected`` holds the probability for each proposal, by position, that it is accepted so far.
    """

    tokens: list[int]
    accepted: list[int] = field(default_factory=list)
    plain: list[int] | None = None
    logits: Tensor | None = None
    verdict: Verdict = UNKNOWN
    expected: list[list[float]] = field(default_factory=list)

    def grow(self, tokens: Sequence[int], logits: Tensor) -> None:
        """By ``tokens``, each chosen from its row of ``logits`` [Q, V]."""
        expected = (self.plain or [])[len(self.tokens) :] if self.logits is None else []
        wrong = [place for place, (one, other) in enumerate(zip(tokens, expected)) if one != other]
        self.tokens += tokens
        self.logits = logits[wrong[0]].clone() if wrong else self.logits

    @property
    def difference(self) -> dict[str, Any] | None:
        """Where drafting changed it: the first place, both tokens (-1: none there), and the verdict on it."""
        if self.plain in (None, self.tokens):
            return None
        plain, drafted = [*(self.plain or ()), -1], [*self.tokens, -1]
        place = next(place for place, pair in enumerate(zip(plain, drafted)) if pair[0] != pair[1])
        return {"place": place, "plain": plain[place], "drafted": drafted[place], **asdict(self.verdict)}


Tell = Callable[[float], None]
"""Is told how much is done of a decoding, 1 for each answer."""


class KnownTokens(Choice):
    """Takes the ``tokens`` [B, n] of texts that are known, one after the other, whatever is likeliest."""

    def __init__(self, tokens: Tensor) -> None:
        self.coming = list(tokens.split(1, dim=1))[::-1]

    def pick(self, logits: Tensor) -> tuple[Tensor, None]:
        """See :class:`ports.evaluate.sampling.Choice`."""
        return self.coming.pop()[:, 0], None

    def verify(self, logits: Tensor, proposal: Proposal) -> tuple[Tensor, Tensor]:
        """Of an empty proposal nothing is accepted."""
        return self.coming.pop(), proposal.tokens.new_zeros(len(logits))


def decode(
    verifier: Any,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    choice: Choice | None = None,
    tell: Tell | None = None,
) -> list[Answer]:
    """The verifier's likeliest tokens, or those of ``choice``, one after the other."""
    return _decode(TargetModel(verifier, None, choice), None, prompts, limits, 0, tell=tell)


def decode_speculatively(
    verifier: Any,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    size: int,
    choice: Choice | None = None,
    plain: Sequence[list[int]] | None = None,
    tell: Tell | None = None,
) -> list[Answer]:
    """The same tokens, in fewer passes of the verifier where proposals of ``size`` are accepted; drawn ones have the
    same distribution. Held against ``plain`` ones, if there are any, with a verdict on the first that is another."""
    answers = _decode(TargetModel(verifier, drafter.features, choice), drafter, prompts, limits, size, plain, tell)
    _judge(verifier, prompts, answers)
    return answers


def _decode(
    target: TargetModel,
    drafter: Drafter | None,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    size: int,
    plain: Sequence[list[int]] | None = None,
    tell: Tell | None = None,
) -> list[Answer]:
    """Without a drafter every proposal is empty, and the verifier's own token is all that a pass gives."""
    block = target.prefill(prompts)
    cache, nothing = KVCache(len(prompts), block.ids.device), Proposal(block.ids[:, :0])
    answers = [Answer([], plain=tokens) for tokens in plain or repeat(None, len(prompts))]
    for answer, token, logits in zip(answers, target.last.tolist(), target.logits):
        answer.grow([token], logits)
    while not all(limits.reached(answer.tokens) for answer in answers):
        proposal = drafter.propose(cache, block, size, target.choice) if drafter else nothing
        block, accepted = target.verify(proposal)
        chances = target.choice.expected if drafter else None
        drawn = repeat([]) if chances is None else [[each] for each in chances.tolist()]
        given = zip(answers, accepted.tolist(), block.ids.tolist(), target.logits, drawn)
        for answer, count, tokens, logits, expected in given:
            if not limits.reached(answer.tokens):
                answer.grow(tokens[: count + 1], logits)
                answer.accepted += [count] if drafter else []
                answer.expected += expected
        if tell:
            tell(sum(map(limits.share, answers)))
    return [replace(answer, tokens=limits.cut(answer.tokens)) for answer in answers]


def _judge(verifier: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> None:
    """Give a verdict on the first token of each answer that is another than in plain decoding.

    Its plain logits are computed again as they were: the same prompts side by side, the same tokens one by one.
    """
    changed = [(row, answer.logits, answer.difference) for row, answer in enumerate(answers)]
    told = [(row, logits, found) for row, logits, found in changed if logits is not None and found is not None]
    length = max((found["place"] + 1 for _, _, found in told), default=0)
    if not length:
        return
    known = [torch.tensor((answer.plain or [])[:length], device=verifier.device) for answer in answers]
    target = TargetModel(verifier, choice=KnownTokens(pad_sequence(known, batch_first=True)))
    nothing = Proposal(target.prefill(prompts).ids[:, :0])
    for place in range(length):
        if place:
            target.verify(nothing)
        for row, logits, found in told:
            if found["place"] == place:
                tokens = found["plain"], found["drafted"]
                answers[row].verdict = verdict_on(target.logits[row, 0], logits, tokens, verifier.dtype)
