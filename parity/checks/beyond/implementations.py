"""The port's fast paths against its plain ones: one optimizer step with each, from the same weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from parity.checks.beyond.watched import check_watched
from parity.checks.evidence import Evidence
from parity.compare import compare_groups
from parity.result import Row
from parity.runs.port import SHORTEST, trace_port
from parity.trace import Trace
from ports.training.alignment import Alignment
from ports.training.attention.choice import AttentionImplementation
from ports.training.loss.scoring import LossImplementation

PLAIN = {"attn_implementation": AttentionImplementation.EAGER, "loss_implementation": LossImplementation.EAGER}
CHAIN = {"ttt_alignment": Alignment.CHAIN, "packing": True}
RECOMPUTED = {"activation_checkpointing": True}

PAIRS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "plain": ({}, PLAIN),
    "chain": (CHAIN, {**CHAIN, **PLAIN}),
    "chain recomputed": (CHAIN, {**CHAIN, **RECOMPUTED}),
    "recomputed": ({}, RECOMPUTED),
}
"""Settings that must give the same numbers."""

WINDOW = 3
"""Samples whose gradients are accumulated."""

COMPARED = {"loss": re.compile(r"mb\d+\.step\d+\.loss"), "grad": re.compile(r"mb\d+\.grad\.")}


def check_implementations(evidence: Evidence) -> list[Row]:
    """Losses of every TTT step, gradients, hits and metrics: dense attention and loss, activations not kept."""
    traces: dict[tuple[tuple[str, Any], ...], Trace] = {(): evidence.found}
    rows = []
    for name, pair in PAIRS.items():
        first, second = (_traced(evidence, settings, traces) for settings in pair)
        rows += _compare(evidence, name, first, second)
    return [*rows, *_accumulated(evidence), *check_watched(evidence)]


def _accumulated(evidence: Evidence) -> list[Row]:
    """The gradient of a batch, and of its samples one after the other."""
    count = min(WINDOW, len(evidence.case.meta.samples_files))
    sides = []
    for bs in (count, 1):
        settings = {"bs": bs, "gradient_accumulation_steps": count // bs}
        trace = trace_port(evidence.case, max_steps=SHORTEST, **settings)
        grads = trace.group(f"mb{trace.micro_batches()[-1]}.grad.") if trace.curve else {}
        sides.append({f"accumulated: {name}": value for name, value in grads.items()})
    return compare_groups(evidence.subject("implementations"), "grad", sides[0], sides[1], evidence.tolerance("grad"))


def _traced(evidence: Evidence, settings: Mapping[str, Any], traces: dict[Any, Trace]) -> Trace:
    key = tuple(settings.items())
    if key not in traces:
        traces[key] = trace_port(evidence.case, max_steps=SHORTEST, **settings)
    return traces[key]


def _compare(evidence: Evidence, pair: str, first: Trace, second: Trace) -> list[Row]:
    subject, rows = evidence.subject("implementations"), []
    for quantity, expected, found in _sides(first, second):
        sides = [{f"{pair}: {name}": value for name, value in side.items()} for side in (expected, found)]
        rows += compare_groups(subject, quantity, sides[0], sides[1], evidence.tolerance(quantity))
    return rows


def _sides(first: Trace, second: Trace) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
    """(quantity, first's tensors, second's tensors)."""
    for quantity, pattern in COMPARED.items():
        expected, found = ({n: v for n, v in trace.tensors.items() if pattern.match(n)} for trace in (first, second))
        yield quantity, expected, found
    for quantity in ("hits", "rows", "loss"):
        yield quantity, _counts(first)[quantity], _counts(second)[quantity]


def _counts(trace: Trace) -> dict[str, dict[str, Tensor]]:
    """What the first micro-batch's point of the curve says, by quantity."""
    if not trace.curve:
        return {"hits": {}, "rows": {}, "loss": {}}
    point = trace.curve[0]
    return {
        "hits": {"hits": torch.tensor([float(point.correct), *map(float, point.top)])},
        "rows": {"rows": torch.tensor([point.rows])},
        "loss": {name: torch.tensor([value]) for name, value in {"reported": point.loss, **point.logged}.items()},
    }
