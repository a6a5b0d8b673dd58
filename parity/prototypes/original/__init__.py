"""Run the unmodified training script of a prototype in its own process and record what it computes."""

from __future__ import annotations

from parity.prototypes.original.checkout import verify
from parity.prototypes.original.child import Request, record_original, request_for

__all__ = ["Request", "record_original", "request_for", "verify"]
