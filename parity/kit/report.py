"""At its new place; gone once nothing imports it from here."""

from parity.run import KitReport, ParityError

__all__ = ["KitReport", "ParityError"]
