"""Which form of the TTT attention runs: one for reading, one for speed; both are registered with transformers."""

from __future__ import annotations

from enum import Enum

from ports.training.alignment import Alignment
from ports.training.attention import dense as attention
from ports.training.attention.flash import fast_attention_name


class AttentionImplementation(str, Enum):
    """``EAGER``: dense scores, written for reading. ``FAST``: O(T) memory. ``AUTO`` takes the fast one."""

    AUTO = "auto"
    EAGER = "eager"
    FAST = "fast"


def attention_name(alignment: Alignment, implementation: AttentionImplementation = AttentionImplementation.AUTO) -> str:
    """The name under which transformers knows this attention."""
    if implementation is AttentionImplementation.EAGER:
        return attention.attention_name(alignment)
    return fast_attention_name(alignment)
