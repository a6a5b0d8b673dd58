"""Half precision: a port may be as wrong as the prototype was, and half as much again; float64 says how wrong that is.

Tensors of the first step are judged by their error against the float64 oracle over the prototype's own. Curves are
judged step by step: the port's distance from the oracle's losses and gradient norms against the prototype's at the same
steps, window by window, and how far the losses of the two have drifted apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from parity.evidence import Evidence
from parity.trace import Trace
from parity.verdict import Row

WINDOWS, FEWEST = 4, 10
"""Parts that a curve is judged in, and steps of one: the distance of a few losses may be small by cancellation."""

UNROUNDED = re.compile(r"mb\d+\.(batch\..*|path\..*|(.*\.)?(loss|grad_norm))")
"""Tensors of a micro-batch that nothing rounds, and single numbers, whose error can be small by cancellation."""


def precision_rows(evidence: Evidence) -> list[Row]:
    """Tensors, losses and gradient norms by their distance from float64, the port's over the original's own."""
    assert evidence.oracle is not None
    oracle = evidence.oracle()
    return [*tensor_rows(evidence, oracle), *distance_rows(evidence, oracle)]


def tensor_rows(evidence: Evidence, oracle: Trace) -> list[Row]:
    """Error against the oracle, the port's over the prototype's, for everything the prototype's trace holds.

    Errors are relative root mean squares over what views count. The losses of the steps count as one vector, since
    the error of a single sum can be small by cancellation; the prototype's counts as bfloat16's rounding or more.
    Targets are float32 in one prototype and half in the other: their error counts as float32's rounding or more.
    Gradients of norms and biases of a micro-batch do for the same reason: a few dozen entries. All parameters after the
    step count as one too: Adam's first step is lr * sign(g), and only the few entries whose sign flips are off. Path
    norms are single numbers; they have a check of their own.
    """
    exact, mine, theirs = (_quantities(side, evidence.found.trained) for side in (oracle, *evidence.traces))
    losses, rows = [f"mb{index}.losses" for index in evidence.expected.micro_batches()], []
    for name in sorted({*mine, *losses}):
        own, port = (error(exact.get(name, {}), side.get(name, {})) for side in (mine, theirs))
        kind = {"losses": "loss_error", "target_p": "target_error"}.get(name.partition(".")[2])
        if own is not None and kind is not None:
            own = max(own, evidence.tolerance(kind).bound)
        rows.append(_ratio_row(evidence, "error_ratio", name, own, port))
    return rows or [evidence.subject("precision").row("error_ratio", "", None, None, False, "nothing compared")]


def distance_rows(evidence: Evidence, oracle: Trace) -> list[Row]:
    """Losses and gradient norms step by step: distance from the oracle, the port's over the prototype's, and the drift.

    Of a run of fewer than ``FEWEST`` steps nothing is said. The prototype's norms count as off by bfloat16's rounding.
    The drift is the mean difference of port and prototype over the last window, by the prototype's own distance there.
    """
    sides = oracle, *evidence.traces
    losses = [[point.loss for point in side.curve] for side in sides]
    norms = [[point.grad_norm for point in side.curve if point.grad_norm is not None] for side in sides]
    least = evidence.tolerance("norm_error").bound
    return [*_distances(evidence, "loss", losses, 0.0), *_distances(evidence, "grad_norm", norms, least)]


def _distances(evidence: Evidence, name: str, series: Sequence[Sequence[float]], least: float) -> list[Row]:
    """Of the series of oracle, prototype and port; the prototype's counts as off by ``least`` or more everywhere."""
    windows = min(WINDOWS, len(series[1]) // FEWEST)
    if not windows:
        return []
    if len(set(map(len, series))) != 1:
        counts = f"steps of oracle, prototype and port: {', '.join(str(len(one)) for one in series)}"
        return [evidence.subject("precision").row("distance", name, None, None, False, counts)]
    exact, *sides = (torch.tensor(one, dtype=torch.float64) for one in series)
    mine, theirs = (((side - exact) / exact).chunk(windows) for side in sides)
    own = [max(_rms(part), least) for part in mine]
    rows = [
        _ratio_row(evidence, "distance", f"{name}, part {part} of {len(mine)}", *pair)
        for part, pair in enumerate(zip(own, map(_rms, theirs)), 1)
    ]
    drift = float((theirs[-1] - mine[-1]).mean().abs())
    return [*rows, _ratio_row(evidence, "drift", f"{name}, last part", own[-1], drift)]


def error(exact: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float | None:
    """Relative root mean square error of one quantity against the oracle; None where a tensor of it is missing."""
    if not found or {name: value.shape for name, value in found.items()} != {n: v.shape for n, v in exact.items()}:
        return None
    expected, port = (torch.cat([side[name].double().flatten() for name in sorted(exact)]) for side in (exact, found))
    gap, size = (port - expected).norm(), expected.norm()
    return float(gap / size) if size > 0 else float(gap)


def _quantities(trace: Trace, trained: Collection[str]) -> Mapping[str, Mapping[str, Tensor]]:
    """The tensors that went through rounding, by the quantity that each is judged in."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in trace.tensors.items():
        quantity = _quantity(name, value, trained)
        if quantity:
            found.setdefault(quantity, {})[name] = value
    return found


def _quantity(name: str, value: Tensor, trained: Collection[str]) -> str:
    """Its own name; ``losses``, ``grad.vectors`` and ``after`` stand for several tensors; empty: it is not judged."""
    first, _, rest = name.partition(".")
    if first == "after":
        return first if rest in trained else ""
    if re.fullmatch(r"step.*\.loss", rest):
        return f"{first}.losses"
    if not first.startswith("mb") or UNROUNDED.fullmatch(name):
        return ""
    return f"{first}.grad.vectors" if rest.startswith("grad.") and value.dim() == 1 else name


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _ratio_row(evidence: Evidence, quantity: str, name: str, own: float | None, theirs: float | None) -> Row:
    """``theirs`` over ``own``; what is missing on a side, or not a number, fails."""
    subject, bound = evidence.subject("precision"), evidence.tolerance(quantity).bound
    if own is None or theirs is None:
        side = "prototype" if own is None else subject.run
        return subject.row(quantity, name, None, bound, False, f"missing on the {side}'s side")
    measured = 0.0 if theirs == 0.0 else theirs / own if own else math.inf
    detail = f"{theirs:.3g}, the prototype's own {own:.3g}"
    return subject.row(quantity, name, measured, bound, measured <= bound, detail)
