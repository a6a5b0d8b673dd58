"""At its new place; gone once nothing imports it from here."""

from parity.tolerances import Tolerances, table_for

__all__ = ["Tolerances", "table_for"]
