"""The prototypes' parameter names and Speculators' names for the same tensors, by algorithm."""

from __future__ import annotations

from collections.abc import Callable

from ports.eagle3 import names as eagle3
from ports.hass import names as hass

TO_NATIVE: dict[str, Callable[[str], str]] = {"eagle3": eagle3.to_native, "hass": hass.to_native}
TO_PROTOTYPE: dict[str, Callable[[str], str]] = {"eagle3": eagle3.to_prototype, "hass": hass.to_prototype}
