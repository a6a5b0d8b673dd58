"""One comparison a file. ``CHECKS`` lists them in the order in which a fault travels."""

from parity.checks.registry import CHECKS, checks_for, run_checks

__all__ = ["CHECKS", "checks_for", "run_checks"]
