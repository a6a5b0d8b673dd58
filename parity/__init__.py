"""A pytest harness that shows, number by number, that a port trains like its prototype.

The public names are imported when they are first asked for: pytest loads this package in every session.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.allowed import moved
    from parity.case import Case
    from parity.checks import NAMES as CHECKS
    from parity.compare import View
    from parity.comparing import compare_sides, compare_traces
    from parity.engine import EngineSide
    from parity.names import Fused, NameMap, Replicated, transposed
    from parity.observe import Draw, tap, unrolled
    from parity.outside import CommandSide, FolderSide
    from parity.pair import Options, Pair
    from parity.plants import Fault
    from parity.run import KitReport, ParityError, run_pair
    from parity.side import Side, trace_side
    from parity.step import Clip
    from parity.study import KnownDifference, edit_module, in_context, keep_from_build, replace_functions
    from parity.suggest import suggest_names
    from parity.tolerances import Kind, Tolerance
    from parity.trace import Trace, read_trace, write_trace
    from parity.verdict import Finding

PLACES = {
    "case": ("Case",),
    "checks": ("CHECKS",),
    "compare": ("View",),
    "comparing": ("compare_sides", "compare_traces"),
    "engine": ("EngineSide",),
    "names": ("Fused", "NameMap", "Replicated", "transposed"),
    "observe": ("Draw", "tap", "unrolled"),
    "pair": ("Options", "Pair"),
    "plants": ("Fault",),
    "outside": ("CommandSide", "FolderSide"),
    "run": ("KitReport", "ParityError", "run_pair"),
    "side": ("Side", "trace_side"),
    "step": ("Clip",),
    "study": ("KnownDifference", "keep_from_build", "edit_module", "replace_functions", "in_context"),
    "suggest": ("suggest_names",),
    "allowed": ("moved",),
    "tolerances": ("Kind", "Tolerance"),
    "trace": ("Trace", "read_trace", "write_trace"),
    "verdict": ("Finding",),
}
HOME = {name: place for place, names in PLACES.items() for name in names}

__all__ = ["Case", "CommandSide", "Draw", "EngineSide", "FolderSide", "KnownDifference", "Pair", "Side", "View", "tap"]
__all__ += ["Clip", "Fused", "Kind", "NameMap", "Replicated", "Tolerance", "suggest_names", "transposed"]
__all__ += ["CHECKS", "Options", "compare_sides", "compare_traces", "moved", "run_pair"]
__all__ += ["Fault", "edit_module", "in_context", "keep_from_build", "replace_functions", "unrolled"]
__all__ += ["Finding", "KitReport", "ParityError", "Trace", "read_trace", "trace_side", "write_trace"]


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module 'parity' has no attribute {name!r}")
    found = getattr(import_module(f"parity.{HOME[name]}"), "NAMES" if name == "CHECKS" else name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
