"""The old place of what lies in :mod:`parity.verdict`."""

from parity.verdict import Follows, cause, explained

__all__ = ["Follows", "cause", "explained"]
