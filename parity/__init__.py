"""A pytest harness that shows, number by number, that a port trains like its prototype.

The public names are imported when they are first asked for: pytest loads this package in every session.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.allowed import moved
    from parity.checks import NAMES as CHECKS
    from parity.compare import View
    from parity.engine import EngineSide
    from parity.locate import Finding
    from parity.names import Copied, Joined, NameMap, Suggestion, suggest_names, transposed
    from parity.observe import Draw, tap, unrolled
    from parity.pair import Options, Pair
    from parity.plants import Fault
    from parity.run import KitReport, ParityError, compare_sides, compare_traces, run_pair
    from parity.side import Case, CommandSide, FolderSide, Side, trace_side
    from parity.single import single_step
    from parity.step import Clip
    from parity.study import Cause, as_built, changed, instead, within
    from parity.tolerances import Kind, Tolerance
    from parity.trace import Trace, read_trace, write_trace

PLACES = {
    "checks": ("CHECKS",),
    "compare": ("View",),
    "engine": ("EngineSide",),
    "locate": ("Finding",),
    "names": ("Copied", "Joined", "NameMap", "Suggestion", "suggest_names", "transposed"),
    "observe": ("Draw", "tap", "unrolled"),
    "pair": ("Options", "Pair"),
    "plants": ("Fault",),
    "run": ("KitReport", "ParityError", "compare_sides", "compare_traces", "run_pair"),
    "side": ("Case", "CommandSide", "FolderSide", "Side", "trace_side"),
    "single": ("single_step",),
    "step": ("Clip",),
    "study": ("Cause", "as_built", "changed", "instead", "within"),
    "allowed": ("moved",),
    "tolerances": ("Kind", "Tolerance"),
    "trace": ("Trace", "read_trace", "write_trace"),
}
HOME = {name: place for place, names in PLACES.items() for name in names}

__all__ = ["Case", "Cause", "CommandSide", "Draw", "EngineSide", "FolderSide", "Pair", "Side", "View", "tap"]
__all__ += ["Clip", "Copied", "Joined", "Kind", "NameMap", "Suggestion", "Tolerance", "suggest_names", "transposed"]
__all__ += ["CHECKS", "Options", "compare_sides", "compare_traces", "moved", "run_pair", "single_step"]
__all__ += ["Fault", "as_built", "changed", "instead", "unrolled", "within"]
__all__ += ["Finding", "KitReport", "ParityError", "Trace", "read_trace", "trace_side", "write_trace"]


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module 'parity' has no attribute {name!r}")
    found = getattr(import_module(f"parity.{HOME[name]}"), "NAMES" if name == "CHECKS" else name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
