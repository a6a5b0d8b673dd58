"""One comparison a file. ``CHECKS`` lists them in the order in which a fault travels."""

from parity.checks.registry import CHECKS, run_checks

__all__ = ["CHECKS", "run_checks"]
