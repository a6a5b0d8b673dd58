"""What one rounding does to a prototype, by the reference, which is itself held against the recordings.

A recording carries it in ``spread.json``, in the form of :func:`parity.allowed.spread_of`; what has none, one that was
just made for example, is measured when it is asked for, as a live original is: by a few draws, and by more where a row
is beyond the bound of these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from parity.allowed import DRAWN, Disturbance, Spread, size_of, spread_of
from parity.compare import View, viewed
from parity.draws import draws_of, stages_of
from parity.files import read_object, validated, write_whole
from parity.prototypes.case import RecordedCase
from parity.prototypes.reference.loop import trace_reference
from parity.tolerances import Size as Finite
from parity.trace import Trace

FILE = "spread.json"


def real_positions(trace: Trace, name: str) -> Tensor | None:
    """bool [B, T]: a micro-batch's positions that are not padding."""
    mask = trace.tensors.get(f"{name.partition('.')[0]}.batch.attention_mask")
    return None if mask is None else mask.bool()


BY_POSITION = ("mb*.target_p", "mb*.step*.hidden_in", "mb*.step*.hidden", "mb*.step*.logits")
VIEWS = tuple(View(each, rows=real_positions) for each in BY_POSITION)
_MEASURED: dict[tuple[Path, bool], Spread] = {}
Numbers = tuple[Finite, Finite, Finite]


def measure(case: RecordedCase, whole: bool = True) -> Spread:
    """The spread of a case, by running the reference anew, a few times or as often as before a row is called wrong."""

    def run(number: int, disturbance: Disturbance | None = None) -> Trace:
        return trace_reference(case, draw=number, disturbance=disturbance)

    base = run(0)
    few = draws_of(run)
    if whole:
        return [*stages_of(run, base, few, lambda trace: viewed(base, trace, VIEWS)[1], math.inf)][-1]
    alike = [viewed(base, trace, VIEWS) for trace in few]
    return spread_of(alike[0][0], [trace for _, trace in alike])


def write_spread(case: RecordedCase) -> Path:
    """Measure it and put it beside what the case's prototype computed."""
    lines = (f"{json.dumps(name)}: {json.dumps(sizes)}" for name, sizes in measure(case).items())
    write_whole(case.directory / FILE, "{\n" + ",\n".join(lines) + "\n}\n")
    return case.directory / FILE


def spread_for(case: RecordedCase) -> Spread:
    """Of a case: as its recording has it, else of a few draws, measured once.

    Raises:
        InputError: a file that holds something else.
    """
    file = case.directory / FILE
    if file.exists():
        return dict(validated(file, dict[str, list[Numbers | Finite]], read_object(file, "a recording's spread")))
    return measured_once(case, whole=False)


def measured_once(case: RecordedCase, whole: bool = True) -> Spread:
    """:func:`measure` of a case, kept for the next that asks."""
    key = case.directory, whole
    if key not in _MEASURED:
        _MEASURED[key] = measure(case, whole)
    return _MEASURED[key]


def with_spread(trace: Trace, case: RecordedCase) -> Trace:
    """A recording's trace with what one rounding does to it."""
    return replace(trace, spread=dict(spread_for(case)))


def more_of(case: RecordedCase) -> Callable[[], Spread] | None:
    """What measures the spread of a case by more draws; None where its recording has as many."""
    return None if DRAWN in spread_for(case) and (case.directory / FILE).exists() else partial(measured_once, case)


def margin_of(case: RecordedCase) -> float:
    """How far rounding may move a logit by the end of a run, of their root mean square."""
    return size_of(*spread_for(case).get("last.logits", (0.0,))).bound
