"""bfloat16: a port may be as wrong as the prototype was, and half as much again; float64 says how wrong that is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parity.compare import Subject
from parity.evidence import Evidence
from parity.trace import Trace
from parity.verdict import Row

AFTER = "after"
"""All trained parameters after the first optimizer step."""

VECTORS = ".grad.vectors"
"""Ends the name of what a micro-batch's one-dimensional gradients are together."""


def check_precision(evidence: Evidence) -> list[Row]:
    """Error against the float64 reference: the port's over the prototype's, for everything the recording holds.

    Errors are relative root mean squares over the real positions. The losses of the TTT steps count as one vector,
    since the error of a single sum can be small by cancellation; the prototype's counts as bfloat16's rounding or more.
    Gradients of norms and biases of a micro-batch do for the same reason: a few dozen entries. All parameters after the
    step count as one too: Adam's first step is lr * sign(g), and only the few entries whose sign flips are off. Path
    norms are single numbers; they have a check of their own.
    """
    assert evidence.oracle is not None
    oracle, subject = evidence.oracle(), evidence.subject("precision")
    rows = []
    for name in _quantities(evidence.expected, evidence.found.trained):
        prototype, port = (error(oracle, side, name, evidence) for side in (evidence.expected, evidence.found))
        rows.append(_row(subject, evidence, name, prototype, port))
    return rows or [subject.row("error_ratio", "", None, None, False, "nothing compared")]


def _quantities(trace: Trace, trained: tuple[str, ...]) -> list[str]:
    """Tensors that went through rounding; ``losses``, ``grad.vectors`` and ``after`` stand for several of them."""
    names = [name for name in trace.tensors if name.startswith("mb") and ".batch." not in name]
    names = [name for name in names if not name.endswith(("loss", "grad_norm", "target_p")) and ".path." not in name]
    names = [name for name in names if ".grad." not in name or trace.tensors[name].dim() > 1]
    pooled = {f"{name.partition('.')[0]}{VECTORS}" for name in trace.tensors if _is_vector_gradient(name, trace)}
    losses = [f"mb{index}.losses" for index in trace.micro_batches()]
    return sorted([*names, *pooled, *losses]) + [AFTER] * any(f"after.{name}" in trace.tensors for name in trained)


def error(oracle: Trace, side: Trace, name: str, evidence: Evidence) -> float | None:
    """Relative root mean square error of one quantity against the oracle; None where it is missing."""
    expected, found = (_value(trace, name, evidence.found.trained) for trace in (oracle, side))
    if expected is None or found is None or expected.shape != found.shape:
        return None
    if expected.dim() == 3 and name.startswith("mb"):
        where = evidence.real(int(name[2 : name.index(".")]))
        if where.shape != expected.shape[:2]:
            return None
        expected, found = expected[where], found[where]
    gap, size = (found - expected).norm(), expected.norm()
    return float(gap / size) if size > 0 else float(gap)


def _value(trace: Trace, name: str, trained: tuple[str, ...]) -> Tensor | None:
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


def _row(subject: Subject, evidence: Evidence, name: str, prototype: float | None, port: float | None) -> Row:
    bound = evidence.tolerance("error_ratio").bound
    if prototype is None or port is None:
        side = "prototype" if prototype is None else evidence.found.run
        return subject.row("error_ratio", name, None, bound, False, f"missing on the {side}'s side")
    own = max(prototype, evidence.tolerance("loss_error").bound) if name.endswith(".losses") else prototype
    ratio = 0.0 if port == 0.0 else port / own if own else float("inf")
    passed = ratio <= bound  # False for NaN
    return subject.row(
        "error_ratio", name, ratio, bound, passed, f"error {port:.3g}, the prototype's own {prototype:.3g}"
    )
