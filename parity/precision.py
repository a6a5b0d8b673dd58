"""Half precision: a port may be as wrong as the prototype was, and half as much again; float64 says how wrong that is.

Tensors of the first step are judged by their error against the float64 oracle over the prototype's own. Curves are
judged step by step: the port's distance from the oracle's losses against the prototype's at the same steps, window by
window, and how far the two have drifted apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from parity.compare import Subject
from parity.tolerances import Tolerance
from parity.trace import Trace
from parity.verdict import Row

AFTER = "after"
"""All trained parameters after the first optimizer step."""

VECTORS = ".grad.vectors"
"""Ends the name of what a micro-batch's one-dimensional gradients are together."""

WINDOWS, FEWEST = 4, 10
"""Parts that a curve is judged in, and steps of one: the distance of a few losses may be small by cancellation."""

Real = Callable[[int], Tensor]
"""bool [B, T]: the positions of a micro-batch that are not padding."""


def tensor_rows(
    subject: Subject, oracle: Trace, expected: Trace, found: Trace, real: Real, allowed: Mapping[str, Tolerance]
) -> list[Row]:
    """Error against the oracle, the port's over the prototype's, for everything the prototype's trace holds.

    Errors are relative root mean squares over the real positions. The losses of the steps count as one vector, since
    the error of a single sum can be small by cancellation; the prototype's counts as bfloat16's rounding or more.
    Gradients of norms and biases of a micro-batch do for the same reason: a few dozen entries. All parameters after the
    step count as one too: Adam's first step is lr * sign(g), and only the few entries whose sign flips are off. Path
    norms are single numbers; they have a check of their own.

    Args:
        subject: names the rows.
        oracle, expected, found: float64, prototype and port.
        real: where a micro-batch is not padding.
        allowed: rows ``error_ratio`` and ``loss_error``.
    """
    rows = []
    for name in _quantities(expected, found.trained):
        own, theirs = (error(oracle, side, name, found.trained, real) for side in (expected, found))
        if own is not None and name.endswith(".losses"):
            own = max(own, allowed["loss_error"].bound)
        rows.append(_ratio_row(subject, "error_ratio", name, own, theirs, allowed["error_ratio"].bound))
    return rows or [subject.row("error_ratio", "", None, None, False, "nothing compared")]


def distance_rows(
    subject: Subject, oracle: Trace, expected: Trace, found: Trace, allowed: Mapping[str, Tolerance]
) -> list[Row]:
    """Losses step by step: distance from the oracle in every window, the port's over the prototype's, and the drift.

    Of a run of fewer than ``FEWEST`` steps nothing is said.
    The drift is the mean difference of port and prototype over the last window, by the prototype's own distance there.
    """
    losses = [
        torch.tensor([point.loss for point in side.curve], dtype=torch.float64) for side in (oracle, expected, found)
    ]
    windows = min(WINDOWS, len(losses[1]) // FEWEST)
    if not windows:
        return []
    if len({len(series) for series in losses}) != 1:
        counts = ", ".join(str(len(series)) for series in losses)
        return [subject.row("distance", "loss", None, None, False, f"steps of oracle, prototype and port: {counts}")]
    own, theirs = ((series - losses[0]) / losses[0] for series in losses[1:])
    parts = list(zip(own.chunk(windows), theirs.chunk(windows)))
    rows = [
        _ratio_row(
            subject,
            "distance",
            f"loss, part {number + 1} of {len(parts)}",
            _rms(mine),
            _rms(port),
            allowed["distance"].bound,
        )
        for number, (mine, port) in enumerate(parts)
    ]
    drift = float((parts[-1][1] - parts[-1][0]).mean().abs())
    return [*rows, _ratio_row(subject, "drift", "loss, last part", _rms(parts[-1][0]), drift, allowed["drift"].bound)]


def error(oracle: Trace, side: Trace, name: str, trained: Sequence[str], real: Real) -> float | None:
    """Relative root mean square error of one quantity against the oracle; None where it is missing."""
    expected, found = (_value(trace, name, trained) for trace in (oracle, side))
    if expected is None or found is None or expected.shape != found.shape:
        return None
    if expected.dim() == 3 and name.startswith("mb"):
        where = real(int(name[2 : name.index(".")]))
        if where.shape != expected.shape[:2]:
            return None
        expected, found = expected[where], found[where]
    gap, size = (found - expected).norm(), expected.norm()
    return float(gap / size) if size > 0 else float(gap)


def _quantities(trace: Trace, trained: Sequence[str]) -> list[str]:
    """Tensors that went through rounding; ``losses``, ``grad.vectors`` and ``after`` stand for several of them."""
    names = [name for name in trace.tensors if name.startswith("mb") and ".batch." not in name]
    names = [name for name in names if not name.endswith(("loss", "grad_norm", "target_p")) and ".path." not in name]
    names = [name for name in names if ".grad." not in name or trace.tensors[name].dim() > 1]
    pooled = {f"{name.partition('.')[0]}{VECTORS}" for name in trace.tensors if _is_vector_gradient(name, trace)}
    losses = [f"mb{index}.losses" for index in trace.micro_batches()]
    return sorted([*names, *pooled, *losses]) + [AFTER] * any(f"after.{name}" in trace.tensors for name in trained)


def _value(trace: Trace, name: str, trained: Sequence[str]) -> Tensor | None:
    if name == AFTER:
        return _together([trace.tensors.get(f"after.{parameter}") for parameter in trained])
    if name.endswith(VECTORS):
        kept = (key for key in sorted(trace.tensors) if key.startswith(name[: -len("vectors")]))
        return _together([trace.tensors[key] for key in kept if _is_vector_gradient(key, trace)])
    if not name.endswith(".losses"):
        value = trace.tensors.get(name)
        return None if value is None else value.double()
    prefix = name.removesuffix("losses")
    return _together([value for key, value in sorted(trace.tensors.items()) if _is_step_loss(key, prefix)])


def _together(values: Sequence[Tensor | None]) -> Tensor | None:
    """All entries in one vector; None where one is missing."""
    present = [value.double().reshape(-1) for value in values if value is not None]
    return torch.cat(present) if present and len(present) == len(values) else None


def _is_vector_gradient(name: str, trace: Trace) -> bool:
    return name.startswith("mb") and ".grad." in name and trace.tensors[name].dim() == 1


def _is_step_loss(name: str, prefix: str) -> bool:
    return name.startswith(f"{prefix}step") and name.endswith(".loss")


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _ratio_row(
    subject: Subject, quantity: str, name: str, own: float | None, theirs: float | None, bound: float
) -> Row:
    """``theirs`` over ``own``; what is missing on a side, or not a number, fails."""
    if own is None or theirs is None:
        side = "prototype" if own is None else subject.run
        return subject.row(quantity, name, None, bound, False, f"missing on the {side}'s side")
    measured = 0.0 if theirs == 0.0 else theirs / own if own else math.inf
    detail = f"{theirs:.3g}, the prototype's own {own:.3g}"
    return subject.row(quantity, name, measured, bound, measured <= bound, detail)
