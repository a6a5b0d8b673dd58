"""A pytest harness that shows, number by number, that a port trains like its prototype.

The public kit's names are here too, imported when they are first asked for: pytest loads this package in every session.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.kit import *  # noqa: F403

KIT = (
    "CHECKS",
    "Command",
    "Finding",
    "Joined",
    "Kind",
    "KitReport",
    "NameMap",
    "ParityError",
    "Side",
    "Suggestion",
    "Tolerance",
    "Trace",
    "compare_sides",
    "compare_traces",
    "read_trace",
    "single_step",
    "suggest_names",
    "trace_side",
    "transposed",
    "write_trace",
)


def __getattr__(name: str) -> Any:
    if name in KIT:
        return getattr(import_module("parity.kit"), name)
    raise AttributeError(f"module 'parity' has no attribute {name!r}")
