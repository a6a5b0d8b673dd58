"""Measure a draft: decode every prompt with it and without it, count, and compare the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ports.evaluate.counters import Counters
from ports.evaluate.decode import Answer, Limits, decode, decode_speculatively
from ports.evaluate.drafter import Drafter


@dataclass(frozen=True)
class Difference:
    """Where drafting changed an answer: the prompt, the place in its answer, and both tokens (-1: none there)."""

    prompt: int
    place: int
    plain: int
    drafted: int


@dataclass(frozen=True)
class Evaluation:
    """Counters over all prompts, the tokens after each of them, and where they are not those of plain decoding."""

    counters: Counters
    tokens: list[list[int]]
    differences: list[Difference]


def evaluate(
    verifier: Any, drafter: Drafter, prompts: Sequence[Sequence[int]], limits: Limits, size: int, batch_size: int = 8
) -> Evaluation:
    """Greedy decoding with proposals of ``size`` tokens, ``batch_size`` prompts of about equal length at a time.

    Every answer is decoded plainly too.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    plain: dict[int, Answer] = {}
    drafted: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        texts = [prompts[index] for index in chosen]
        plain.update(zip(chosen, decode(verifier, texts, limits)))
        drafted.update(zip(chosen, decode_speculatively(verifier, drafter, texts, limits, size)))
    accepted = [count for answer in drafted.values() for count in answer.accepted]
    tokens = [drafted[index].tokens for index in range(len(prompts))]
    return Evaluation(Counters.of(accepted, size), tokens, _differences(plain, tokens))


def _differences(plain: dict[int, Answer], drafted: Sequence[Sequence[int]]) -> list[Difference]:
    found = (_first_difference(index, plain[index].tokens, tokens) for index, tokens in enumerate(drafted))
    return [difference for difference in found if difference is not None]


def _first_difference(prompt: int, plain: Sequence[int], drafted: Sequence[int]) -> Difference | None:
    for place in range(max(len(plain), len(drafted))):
        pair = [tokens[place] if place < len(tokens) else -1 for tokens in (plain, drafted)]
        if pair[0] != pair[1]:
            return Difference(prompt, place, *pair)
    return None
