"""What is accepted: counts as vLLM has them, by prompt, and the figures that they make with their intervals."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, model_validator

from ports.evaluate.decode import Answer
from ports.evaluate.intervals import Estimate, Ratio, ratio
from ports.evaluate.prompts import Prompt
from ports.generate.conversations import ConversationError

CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Where a verifier's positions are divided."""


@dataclass(frozen=True)
class Counters:
    """``drafts`` proposals; ``accepted_per_position[i]`` of them had their tokens 0..i accepted.

    A draft is one proposal that the verifier has checked; the token that the verifier makes of the prompt alone belongs
    to none. Tokens accepted past the end of an answer (its length, or a token that ends it) are counted too.
    """

    drafts: int
    accepted_per_position: tuple[int, ...]

    @classmethod
    def of(cls, accepted: Iterable[int], size: int) -> Counters:
        """From the number of accepted tokens, 0..``size``, of every proposal."""
        lengths = list(accepted)
        return cls(len(lengths), tuple(sum(length > place for length in lengths) for place in range(size)))

    @property
    def acceptance_length(self) -> float:
        """Mean tokens that one pass of the verifier gives: those accepted and its own one; 1 without any draft."""
        return 1.0 + sum(self.accepted_per_position) / max(self.drafts, 1)

    @property
    def rate_per_position(self) -> list[float]:
        """Which share of the proposals was accepted at least up to each position."""
        return [count / max(self.drafts, 1) for count in self.accepted_per_position]


def count(answers: Iterable[Answer], size: int) -> Counters:
    """Over all of their proposals."""
    return Counters.of((accepted for answer in answers for accepted in answer.accepted), size)


@dataclass
class Turn:
    """A prompt by its file, its entry there and its turn in it; either its ``answer`` or why it was ``left_out``."""

    file: int
    entry: int
    turn: int
    prompt: Prompt
    answer: Answer | None = None
    left_out: str = ""

    def next(self) -> Turn:
        """The turn after this answer, left out where no prompt can be made of it."""
        assert self.prompt.ask_on is not None
        assert self.answer is not None
        following = replace(self, turn=self.turn + 1, answer=None)
        try:
            following.prompt = self.prompt.ask_on(self.answer.tokens)
        except ConversationError as error:
            following.left_out = str(error)
        return following


class Counted(BaseModel):
    """What was counted of one entry of a file, all of its turns, which hang together.

    Args:
        prompt: its place in the file.
        key: of its first turn's ids: two measurements with other ones asked something else.
        tokens: of its answers.
        drafts: see :class:`Counters`, and ``accepted_per_position``.
        expected_per_position: of drawn ones the sum of what :func:`ports.evaluate.sampling.chances` gives.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: NonNegativeInt
    key: str
    tokens: NonNegativeInt
    drafts: NonNegativeInt
    accepted_per_position: tuple[NonNegativeInt, ...]
    expected_per_position: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _possible(self) -> Counted:
        counts = (self.drafts, *self.accepted_per_position)
        if any(before < after for before, after in pairwise(counts)):
            raise ValueError(f"prompt {self.prompt}: more accepted further on, {counts}")
        return self

    @classmethod
    def of(cls, turns: Sequence[Turn], size: int) -> Counted:
        """From the turns of an entry that were answered."""
        answers = [turn.answer for turn in turns if turn.answer]
        found, drawn = count(answers, size), [row for answer in answers for row in answer.expected]
        return cls(
            prompt=turns[0].entry,
            key=hashlib.sha256(str(turns[0].prompt.ids).encode()).hexdigest()[:16],
            tokens=sum(len(answer.tokens) for answer in answers),
            drafts=found.drafts,
            accepted_per_position=found.accepted_per_position,
            expected_per_position=tuple(map(sum, zip(*drawn))) if drawn else None,
        )


def per_pass(counted: Sequence[Counted], expected: bool = False) -> Ratio:
    """Tokens that a pass of the verifier gives beside its own one; or those ``expected`` where they are drawn."""
    rows = [(each.expected_per_position if expected else each.accepted_per_position) or () for each in counted]
    return Ratio(list(map(sum, rows)), [each.drafts for each in counted])


def figures(counted: Sequence[Counted], size: int) -> dict[str, Any]:
    """``acceptance_length`` and ``rate_per_position``, and the length that is expected of drawn tokens.

    All of one set of proposals: the length is 1 and the rates.
    """
    drafts = [each.drafts for each in counted]
    rates = [ratio([each.accepted_per_position[place] for each in counted], drafts) for place in range(size)]
    found = {"acceptance_length": per_pass(counted).estimate().plus(1), "rate_per_position": rates}
    if any(each.expected_per_position for each in counted):
        found["expected_length"] = per_pass(counted, expected=True).estimate().plus(1)
    return found


def by_context(
    prompts: Sequence[Sequence[int]], answers: Sequence[Answer], dialogues: Sequence[Hashable] | None = None
) -> dict[str, Estimate]:
    """Tokens a pass by where proposals begin, of the parts of :data:`CONTEXTS` that were reached.

    ``dialogues`` are to which each prompt belongs; default: each to its own.
    """
    edges = (0, *CONTEXTS)
    found: dict[int, dict[Hashable, list[int]]] = {}
    for dialogue, prompt, answer in zip(dialogues or range(len(prompts)), prompts, answers):
        begins = accumulate((accepted + 1 for accepted in answer.accepted), initial=len(prompt))
        for begin, accepted in zip(begins, answer.accepted):
            part = found.setdefault(max(edge for edge in edges if edge <= begin), {})
            part.setdefault(dialogue, []).append(accepted)
    parts = {edge: list(each.values()) for edge, each in sorted(found.items())}
    return {_part(edge): ratio(list(map(sum, each)), list(map(len, each))).plus(1) for edge, each in parts.items()}


def _part(edge: int) -> str:
    above = next((each for each in CONTEXTS if each > edge), None)
    return f"from {edge}" if above is None else f"{edge} to {above}" if edge else f"under {above}"


def summary(turns: Sequence[Turn], size: int, contexts: bool = False) -> dict[str, Any]:
    """Everything that is counted of these turns, in JSON types; a difference names its entry as its prompt."""
    done = [(turn, turn.answer) for turn in turns if turn.answer]
    answers = [answer for _, answer in done]
    counters, told = count(answers, size), figures(_counted(turns, size), size)
    compared = all(answer.plain is not None for answer in answers)
    differences = [
        {"prompt": turn.entry, "turn": turn.turn, **answer.difference} for turn, answer in done if answer.difference
    ]
    reasons = Counter(turn.left_out for turn in turns if turn.left_out)
    dialogues = [(turn.file, turn.entry) for turn, _ in done]
    places = by_context([turn.prompt.ids for turn, _ in done], answers, dialogues) if contexts else {}
    drawn = {"expected_length": told["expected_length"].value} if "expected_length" in told else {}
    return {
        "prompts": len(done),
        "speculative_tokens": size,
        "tokens": sum(len(answer.tokens) for answer in answers),
        "drafts": counters.drafts,
        "proposed": counters.drafts * size,
        "accepted": sum(counters.accepted_per_position),
        "accepted_per_position": list(counters.accepted_per_position),
        "rate_per_position": counters.rate_per_position,
        "acceptance_length": counters.acceptance_length,
        **drawn,
        "intervals": in_json(told),
        **({"contexts": in_json(places)} if contexts else {}),
        "lossless": all(found["near_tie"] for found in differences) if compared else None,
        "near_ties": sum(found["near_tie"] for found in differences),
        "differences": differences,
        "left_out": reasons.total(),
        "left_out_reasons": dict(reasons),
    }


def by_prompt(turns: Sequence[Turn], size: int) -> list[dict[str, Any]]:
    """The counts of each entry that was answered, in JSON types."""
    return [each.model_dump(mode="json", exclude_none=True) for each in _counted(turns, size)]


def _counted(turns: Sequence[Turn], size: int) -> list[Counted]:
    done = [turn for turn in turns if turn.answer]
    return [Counted.of(list(each), size) for _, each in groupby(done, key=lambda turn: (turn.file, turn.entry))]


def in_json(estimates: Any) -> Any:
    """Estimates in lists and dictionaries as JSON has them."""
    if isinstance(estimates, Estimate):
        return estimates.as_json()
    if isinstance(estimates, dict):
        return {name: in_json(each) for name, each in estimates.items()}
    return [in_json(each) for each in estimates]
