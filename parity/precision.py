"""Half precision: a port may be as wrong as the prototype was, and half as much again; float64 says how wrong that is.

Tensors of the first step are judged by their error against the float64 oracle over the prototype's own. Curves are
judged step by step: the port's distance from the oracle's losses against the prototype's at the same steps, window by
window, and how far the two have drifted apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from parity.evidence import Evidence
from parity.trace import Trace
from parity.verdict import Row

WINDOWS, FEWEST = 4, 10
"""Parts that a curve is judged in, and steps of one: the distance of a few losses may be small by cancellation."""

UNROUNDED = re.compile(r"mb\d+\.(batch\..*|path\..*|(.*\.)?(loss|grad_norm|target_p))")
"""Tensors of a micro-batch that nothing rounds, and single numbers, whose error can be small by cancellation."""


def precision_rows(evidence: Evidence) -> list[Row]:
    """Tensors and losses by their distance from float64, the port's over the original's own."""
    assert evidence.oracle is not None
    oracle = evidence.oracle()
    return [*tensor_rows(evidence, oracle), *distance_rows(evidence, oracle)]


def tensor_rows(evidence: Evidence, oracle: Trace) -> list[Row]:
    """Error against the oracle, the port's over the prototype's, for everything the prototype's trace holds.

    Errors are relative root mean squares over what views count. The losses of the steps count as one vector, since
    the error of a single sum can be small by cancellation; the prototype's counts as bfloat16's rounding or more.
    Gradients of norms and biases of a micro-batch do for the same reason: a few dozen entries. All parameters after the
    step count as one too: Adam's first step is lr * sign(g), and only the few entries whose sign flips are off. Path
    norms are single numbers; they have a check of their own.
    """
    exact, mine, theirs = (_quantities(side, evidence.found.trained) for side in (oracle, *evidence.traces))
    losses = [f"mb{index}.losses" for index in evidence.expected.micro_batches()]
    rows = []
    for name in sorted({*mine, *losses}):
        own, port = (error(exact.get(name, {}), side.get(name, {})) for side in (mine, theirs))
        if own is not None and name in losses:
            own = max(own, evidence.tolerance("loss_error").bound)
        rows.append(_ratio_row(evidence, "error_ratio", name, own, port))
    return rows or [evidence.subject("precision").row("error_ratio", "", None, None, False, "nothing compared")]


def distance_rows(evidence: Evidence, oracle: Trace) -> list[Row]:
    """Losses step by step: distance from the oracle in every window, the port's over the prototype's, and the drift.

    Of a run of fewer than ``FEWEST`` steps nothing is said.
    The drift is the mean difference of port and prototype over the last window, by the prototype's own distance there.
    """
    losses = [[point.loss for point in side.curve] for side in (oracle, *evidence.traces)]
    windows = min(WINDOWS, len(losses[1]) // FEWEST)
    if not windows:
        return []
    if len(set(map(len, losses))) != 1:
        counts = f"steps of oracle, prototype and port: {', '.join(str(len(series)) for series in losses)}"
        return [evidence.subject("precision").row("distance", "loss", None, None, False, counts)]
    exact, *sides = (torch.tensor(series, dtype=torch.float64) for series in losses)
    mine, theirs = (((side - exact) / exact).chunk(windows) for side in sides)
    rows = [
        _ratio_row(evidence, "distance", f"loss, part {part} of {len(mine)}", _rms(own), _rms(port))
        for part, (own, port) in enumerate(zip(mine, theirs), 1)
    ]
    drift = float((theirs[-1] - mine[-1]).mean().abs())
    return [*rows, _ratio_row(evidence, "drift", "loss, last part", _rms(mine[-1]), drift)]


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
