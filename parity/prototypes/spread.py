"""What one rounding does to a prototype, by the reference, which is itself held against the recordings.

A recording carries it in ``spread.json``, in the form of :func:`parity.allowed.spread_of`; what has none, one that was
just made for example, is measured when it is asked for, by as many draws as a live original is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from parity.allowed import DRAWS, TIMES, spread_of
from parity.compare import View, viewed
from parity.files import read_object, validated, write_whole
from parity.prototypes.case import RecordedCase
from parity.prototypes.reference.loop import trace_reference
from parity.tolerances import Size
from parity.trace import Trace

FILE = "spread.json"
STORED = 8
"""How often the reference is moved for a recording: once and for all, so that single numbers are known too."""


def real_positions(trace: Trace, name: str) -> Tensor | None:
    """bool [B, T]: a micro-batch's positions that are not padding."""
    mask = trace.tensors.get(f"{name.partition('.')[0]}.batch.attention_mask")
    return None if mask is None else mask.bool()


BY_POSITION = ("mb*.target_p", "mb*.step*.hidden_in", "mb*.step*.hidden", "mb*.step*.logits")
VIEWS = tuple(View(each, rows=real_positions) for each in BY_POSITION)
_MEASURED: dict[Path, dict[str, list[float]]] = {}


def measure(case: RecordedCase, draws: int) -> dict[str, list[float]]:
    """The spread of a case, by running the reference anew."""
    base, *moved = (trace_reference(case, draw=number) for number in range(draws + 1))
    alike = [viewed(base, trace, VIEWS) for trace in moved]
    return spread_of(alike[0][0], [trace for _, trace in alike])


def write_spread(case: RecordedCase) -> Path:
    """Measure it and put it beside what the case's prototype computed."""
    lines = (f"{json.dumps(name)}: {json.dumps(sizes)}" for name, sizes in measure(case, STORED).items())
    write_whole(case.directory / FILE, "{\n" + ",\n".join(lines) + "\n}\n")
    return case.directory / FILE


def spread_for(case: RecordedCase) -> dict[str, list[float]]:
    """Of a case: as its recording has it, else measured, once.

    Raises:
        InputError: a file that holds something else.
    """
    file = case.directory / FILE
    if file.exists():
        return dict(validated(file, dict[str, list[Size]], read_object(file, "a recording's spread")))
    if file not in _MEASURED:
        _MEASURED[file] = measure(case, DRAWS)
    return _MEASURED[file]


def with_spread(trace: Trace, case: RecordedCase) -> Trace:
    """A recording's trace with what one rounding does to it."""
    return replace(trace, spread=spread_for(case))


def margin_of(case: RecordedCase) -> float:
    """How far rounding may move a logit by the end of a run, of their root mean square."""
    return TIMES * max(spread_for(case).get("last.logits", [0.0]))
