"""Greedy decoding of several prompts at once, plain or with proposals of a draft.

Shapes: B rows, Q tokens, k size of a proposal, F width of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ports.evaluate.drafter import Drafter
from ports.evaluate.memory import Memory
from ports.evaluate.reader import Reader


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
    """The ``tokens`` after one prompt, and how many tokens of each proposal were ``accepted``."""

    tokens: list[int]
    accepted: list[int] = field(default_factory=list)


def decode(verifier: Any, prompts: Sequence[Sequence[int]], limits: Limits) -> list[Answer]:
    """The verifier's likeliest tokens, one after the other."""
    reader = Reader(verifier)
    reader.start(prompts)
    answers = [Answer([token]) for token in reader.last.tolist()]
    while rows := _unfinished(answers, limits):
        block, _ = reader.check(reader.last.new_empty(len(answers), 0))
        for row in rows:
            answers[row].tokens.append(int(block.ids[row, 0]))
    return _cut(answers, limits)


def decode_speculatively(
    verifier: Any, drafter: Drafter, prompts: Sequence[Sequence[int]], limits: Limits, size: int
) -> list[Answer]:
    """The same tokens, in fewer passes of the verifier where proposals of ``size`` tokens are accepted."""
    reader = Reader(verifier, drafter.features)
    block = reader.start(prompts)
    memory = Memory(len(prompts), block.ids.device)
    answers = [Answer([token]) for token in reader.last.tolist()]
    while rows := _unfinished(answers, limits):
        block, accepted = reader.check(drafter.propose(memory, block, size))
        for row in rows:
            count = int(accepted[row])
            answers[row].accepted.append(count)
            answers[row].tokens += block.ids[row, : count + 1].tolist()
    return _cut(answers, limits)


def _unfinished(answers: Sequence[Answer], limits: Limits) -> list[int]:
    return [row for row, answer in enumerate(answers) if not limits.reached(answer.tokens)]


def _cut(answers: list[Answer], limits: Limits) -> list[Answer]:
    return [Answer(limits.cut(answer.tokens), answer.accepted) for answer in answers]
