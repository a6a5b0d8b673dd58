"""Run the unmodified training script of a prototype in its own process and record what it computes."""

from __future__ import annotations

from parity.runs.original.checkout import COMMIT, Mismatch, Prototype, verify
from parity.runs.original.child import OriginalRunError
from parity.runs.original.launch import record_original
from parity.runs.original.request import OriginalRequest

__all__ = ["COMMIT", "Mismatch", "OriginalRequest", "OriginalRunError", "Prototype", "record_original", "verify"]
