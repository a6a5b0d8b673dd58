"""The public kit: hold any module, loss or step against another one.

``compare_sides`` is the one call; ``single_step`` feeds every module the original's own inputs; ``trace_side``,
``write_trace``, ``read_trace`` and ``compare_traces`` do it in two places. ``docs/kit.md`` is the manual.
"""

from __future__ import annotations

from parity.kit.compare import CHECKS, compare_sides
from parity.kit.report import KitReport, ParityError
from parity.kit.side import Command, Side
from parity.kit.tracing import trace_side
from parity.kit.verdict import compare_traces
from parity.locate import Finding
from parity.names import Joined, NameMap, transposed
from parity.single import single_step
from parity.suggest import Suggestion, suggest_names
from parity.tolerances import Kind, Tolerance
from parity.trace import Trace
from parity.trace_folder import read_trace, write_trace

__all__ = [
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
]
