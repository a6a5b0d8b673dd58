"""Run the unmodified training script of a prototype in its own process and record what it computes."""

from __future__ import annotations

from parity.prototypes.original.checkout import COMMIT, Mismatch, Prototype, verify
from parity.prototypes.original.child import OriginalRunError, record_original
from parity.prototypes.original.request import OriginalRequest

__all__ = ["COMMIT", "Mismatch", "OriginalRequest", "OriginalRunError", "Prototype", "record_original", "verify"]
