"""Decoding of several prompts at once, plain or with proposals of a draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ports.evaluate.drafter import Drafter
from ports.evaluate.sampling import Choice, Proposal
from ports.evaluate.verifier import Memory, Reader


@dataclass(frozen=True)
class Limits:
    """An answer has ``length`` tokens, or fewer if it ends with one of ``stop``."""

    length: int
    stop: frozenset[int] = frozenset()

    def reached(self, tokens: Sequence[int]) -> bool:
        """Is this answer at its end, or past it?"""
        return len(tokens) >= self.length or not self.stop.isdisjoint(tokens)

    def cut(self, tokens: Sequence[int]) -> list[int]:
        """Without what lies past the end."""
        ends = [place + 1 for place, token in enumerate(tokens) if token in self.stop]
        return list(tokens[: min([self.length, *ends])])


@dataclass
class Answer:
    """The ``tokens`` after one prompt, how many tokens of each proposal were ``accepted``, and the ``plain`` tokens, if
    it was decoded without a draft too."""

    tokens: list[int]
    accepted: list[int] = field(default_factory=list)
    plain: list[int] | None = None

    @property
    def difference(self) -> dict[str, int] | None:
        """Where drafting changed it: the first place, and both tokens (-1: none there)."""
        if self.plain in (None, self.tokens):
            return None
        plain, drafted = [*(self.plain or ()), -1], [*self.tokens, -1]
        place = next(place for place, pair in enumerate(zip(plain, drafted)) if pair[0] != pair[1])
        return {"place": place, "plain": plain[place], "drafted": drafted[place]}


def decode(
    verifier: Any, prompts: Sequence[Sequence[int]], limits: Limits, choice: Choice | None = None
) -> list[Answer]:
    """The verifier's likeliest tokens, or those of ``choice``, one after the other."""
    return _decode(Reader(verifier, None, choice), None, prompts, limits, 0)


def decode_speculatively(
    verifier: Any,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    size: int,
    choice: Choice | None = None,
) -> list[Answer]:
    """The same tokens, in fewer passes of the verifier where proposals of ``size`` are accepted; drawn ones have the
    same distribution."""
    return _decode(Reader(verifier, drafter.features, choice), drafter, prompts, limits, size)


def _decode(
    reader: Reader, drafter: Drafter | None, prompts: Sequence[Sequence[int]], limits: Limits, size: int
) -> list[Answer]:
    """Without a drafter every proposal is empty, and the verifier's own token is all that a pass gives."""
    block = reader.start(prompts)
    memory, nothing = Memory(len(prompts), block.ids.device), Proposal(block.ids[:, :0])
    answers = [Answer([token]) for token in reader.last.tolist()]
    while not all(limits.reached(answer.tokens) for answer in answers):
        proposal = drafter.propose(memory, block, size, reader.choice) if drafter else nothing
        block, accepted = reader.check(proposal)
        for answer, count, tokens in zip(answers, accepted.tolist(), block.ids.tolist()):
            if not limits.reached(answer.tokens):
                answer.tokens += tokens[: count + 1]
                answer.accepted += [count] if drafter else []
    return [Answer(limits.cut(answer.tokens), answer.accepted) for answer in answers]
