"""Run the unmodified training script of a prototype in its own process and record what it computes."""

from __future__ import annotations

from parity.prototypes.original.checkout import verify
from parity.prototypes.original.child import record_original

__all__ = ["record_original", "verify"]
