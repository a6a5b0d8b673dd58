"""What speculative decoding counts, under vLLM's definitions.

A draft is one proposal that the verifier has checked; the token that the verifier makes of the prompt alone belongs to
none. Tokens that were accepted past the end of an answer (its length, or a token that ends it) are counted too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """``drafts`` proposals; ``accepted_per_position[i]`` of them had their tokens 0..i accepted."""

    drafts: int
    accepted_per_position: tuple[int, ...]

    @classmethod
    def of(cls, accepted: Iterable[int], size: int) -> Counters:
        """From the number of accepted tokens, 0..``size``, of every proposal."""
        lengths = list(accepted)
        return cls(len(lengths), tuple(sum(length > place for length in lengths) for place in range(size)))

    @property
    def proposed(self) -> int:
        """Tokens that were proposed."""
        return self.drafts * len(self.accepted_per_position)

    @property
    def accepted(self) -> int:
        """Tokens that were accepted."""
        return sum(self.accepted_per_position)

    @property
    def acceptance_length(self) -> float:
        """Mean tokens that one pass of the verifier gives: those accepted and its own one; 1 without any draft."""
        return 1.0 + (self.accepted / self.drafts if self.drafts else 0.0)

    @property
    def rate_per_position(self) -> list[float]:
        """Which share of the proposals was accepted at least up to each position."""
        return [count / self.drafts if self.drafts else 0.0 for count in self.accepted_per_position]
