"""What an engine is asked, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAX_CONCURRENCY = 64
"""Requests that a server or vLLM holds at a time."""

Drawn = dict[str, float]
"""How tokens are drawn, by vLLM's names: ``max_tokens`` of an answer, ``temperature`` (0: greedily), ``top_p``."""

Tell = Callable[[int, float], None]
"""Is told how many of the prompts are answered by now, and how many with the parts of those that are not."""


@dataclass(frozen=True)
class Prompt:
    """Token ids up to where the verifier speaks, and the seed of its answer's draws."""

    ids: list[int]
    seed: int


ENDS = ("stop", "length")
"""How an answer ends: the verifier ended it, or it was cut at its longest. What ended otherwise is none."""


@dataclass(frozen=True)
class Reply:
    """An answer without what ends it; ``end`` is one of :data:`ENDS`, or the engine's word for what went wrong.

    ``whole`` is the text with the special tokens that were in it, which no text can hold; a server does not tell.
    """

    text: str
    end: str
    whole: str
