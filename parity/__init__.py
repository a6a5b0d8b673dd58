"""A pytest harness that shows, number by number, that a port trains like its prototype.

The public names are imported when they are first asked for: pytest loads this package in every session.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.checks import NAMES as CHECKS
    from parity.compare import View
    from parity.kit.locate import Finding
    from parity.kit.names import Joined, NameMap, transposed
    from parity.kit.single import single_step
    from parity.kit.suggest import Suggestion, suggest_names
    from parity.pair import Pair
    from parity.persist import read_trace, write_trace
    from parity.run import KitReport, Options, ParityError, compare_sides, compare_traces, run_pair
    from parity.side import Case, CommandSide, FolderSide, Side, trace_side
    from parity.tolerances import Kind, Tolerance
    from parity.trace import Trace

PLACES = {
    "checks": ("CHECKS",),
    "compare": ("View",),
    "kit.locate": ("Finding",),
    "kit.names": ("Joined", "NameMap", "transposed"),
    "kit.single": ("single_step",),
    "kit.suggest": ("Suggestion", "suggest_names"),
    "pair": ("Pair",),
    "persist": ("read_trace", "write_trace"),
    "run": ("KitReport", "Options", "ParityError", "compare_sides", "compare_traces", "run_pair"),
    "side": ("Case", "CommandSide", "FolderSide", "Side", "trace_side"),
    "tolerances": ("Kind", "Tolerance"),
    "trace": ("Trace",),
}
HOME = {name: place for place, names in PLACES.items() for name in names}

__all__ = [
    "CHECKS",
    "Case",
    "CommandSide",
    "Finding",
    "FolderSide",
    "Joined",
    "Kind",
    "KitReport",
    "NameMap",
    "Options",
    "Pair",
    "ParityError",
    "Side",
    "Suggestion",
    "Tolerance",
    "Trace",
    "View",
    "compare_sides",
    "compare_traces",
    "read_trace",
    "run_pair",
    "single_step",
    "suggest_names",
    "trace_side",
    "transposed",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module 'parity' has no attribute {name!r}")
    found = getattr(import_module(f"parity.{HOME[name]}"), "NAMES" if name == "CHECKS" else name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
