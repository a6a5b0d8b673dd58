"""Run training codes outside of Speculators, unmodified, each in its own process, on the first batch of a case."""

from __future__ import annotations

from parity.prototypes.others.checkout import OTHERS, Other, require_other, verify_other
from parity.prototypes.others.launch import OtherTrace, run_other

__all__ = ["OTHERS", "Other", "OtherTrace", "require_other", "run_other", "verify_other"]
