"""One comparison a file. ``CHECKS`` lists them in the order in which a fault travels.

They lie by where the other side comes from: the recording (``recorded``), or Speculators itself (``beyond``).
"""

from parity.prototypes.checks.registry import CHECKS, checks_for, run_checks

__all__ = ["CHECKS", "checks_for", "run_checks"]
