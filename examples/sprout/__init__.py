"""Sprout as a native Speculators algorithm; importing this package registers it with Speculators."""

import ports  # noqa: F401  (before Speculators: makes it importable beside a CPU build of torch)
from sprout.config import SproutConfig
from sprout.model import SproutModel

__all__ = ["SproutConfig", "SproutModel"]
