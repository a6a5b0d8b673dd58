"""Which key a TTT step reads from the steps before it."""

from __future__ import annotations

from enum import Enum


class Alignment(str, Enum):
    """``PROTOTYPE``: the prototypes' own-position keys and values. ``CHAIN``: the key of the token in the chain.

    At TTT step s the query of position p meets the keys of step i (1 <= i <= s). The prototypes read k_i[p]; a draft
    that is served reads k_i[p - (s - i)], as EAGLE-3, HASS and Speculators do. The loss follows: ``CHAIN`` also takes
    Speculators' shifted mask and drops the rows p < s. See ``own-position-kv``, ``unshifted-mask`` and
    ``leading-rows`` in docs/deviations.md.
    """

    PROTOTYPE = "prototype"
    CHAIN = "chain"
