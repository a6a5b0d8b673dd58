"""Gradients, the optimizer step they lead to, and whether every parameter takes part."""

from __future__ import annotations

from dataclasses import replace

import torch

from parity.compare import Subject, compare_groups, compare_named
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.checks.recorded.determined import compare_parameters
from parity.step import clip_rows, schedule_rows, update_rows
from parity.verdict import Against, GradientFlow, Row


def check_gradients(evidence: Evidence) -> list[Row]:
    """Every gradient by name, before clipping, and their global norm."""
    subject, rows = evidence.subject("gradients"), []
    last = evidence.micro_batches()[-1]
    expected, found = (trace.group(f"mb{last}.grad.") for trace in (evidence.expected, evidence.found))
    rows += compare_groups(subject, "grad", expected, found, evidence.tolerance("grad"))
    name = f"mb{last}.grad_norm"
    before, after = (trace.tensors.get(name) for trace in (evidence.expected, evidence.found))
    return [*rows, compare_named(subject, "grad_norm", name, before, after, evidence.tolerance("grad_norm"))]


def check_clip(evidence: Evidence) -> list[Row]:
    """What reached the optimizer against what the backward gave, in every step."""
    return clip_rows(_audited(evidence, "clip"), evidence.found.audits, evidence.tolerance("clip"))


def check_schedule(evidence: Evidence) -> list[Row]:
    """The rate of every step against the schedule's formula."""
    return schedule_rows(_audited(evidence, "schedule"), evidence.found.audits, evidence.tolerance("lr"))


def check_optimizer_step(evidence: Evidence) -> list[Row]:
    """Every step recomputed from what entered it; in float32 also the parameters after the first, as recorded."""
    rows = [] if evidence.is_bf16 else _after_first_step(evidence)
    if evidence.draft is None:
        return rows
    tolerances = [evidence.tolerance(name) for name in ("update", "state", "rows")]
    return [*rows, *update_rows(_audited(evidence, "optimizer_step"), evidence.found.audits, *tolerances)]


def _audited(evidence: Evidence, check: str) -> Subject:
    return replace(evidence.subject(check), against=Against.REFERENCE)


def _after_first_step(evidence: Evidence) -> list[Row]:
    expected, found = (trace.group("after.") for trace in (evidence.expected, evidence.found))
    found = {name: value for name, value in found.items() if name in expected or name in evidence.found.trained}
    return compare_parameters(evidence, evidence.subject("optimizer_step"), "after", expected, found)


def check_gradient_flow(evidence: Evidence) -> list[Row]:
    """Each trainable parameter has a finite non-zero gradient and moved; each frozen one has none and did not."""
    subject, rows = evidence.subject("gradient_flow"), []
    prototype = evidence.trained_by_prototype()
    rows.append(_same_names(subject, prototype, set(evidence.found.trained)))
    for flow in gradient_flow(evidence):
        fault = _fault(flow)
        rows.append(subject.row("flow", flow.parameter, flow.grad_max, None, not fault, fault))
    return rows


def gradient_flow(evidence: Evidence) -> list[GradientFlow]:
    """Gradient size and distance moved of every parameter of the found side."""
    trace = evidence.found
    last = (trace.micro_batches() or [0])[-1]
    grads, start, end = trace.group(f"mb{last}.grad."), trace.group("init."), trace.group("final.")
    flows = []
    for name in [*trace.trained, *trace.frozen]:
        grad = float(grads[name].abs().max()) if name in grads else None
        moved = float((end[name].double() - start[name].double()).abs().max()) if name in end and name in start else 0.0
        flows.append(GradientFlow(trace.case, trace.run, name, name in trace.trained, grad, moved))
    return flows


def _fault(flow: GradientFlow) -> str:
    if not flow.trainable:
        if flow.grad_max is not None:
            return f"frozen, but has a gradient of up to {flow.grad_max:.3g}"
        return f"frozen, but moved by {flow.moved:.3g}" if flow.moved else ""
    if flow.grad_max is None:
        return "trainable, but got no gradient: its path to the loss is cut"
    if not torch.isfinite(torch.tensor(flow.grad_max)):
        return f"gradient is {flow.grad_max}"
    if flow.grad_max == 0.0:
        return "gradient is zero everywhere"
    return "" if flow.moved else "did not move over the whole run"


def _same_names(subject: Subject, expected: set[str], found: set[str]) -> Row:
    if not expected:
        return subject.row(
            "trained", "", None, 0.0, False, "nothing compared: no parameter of the prototype is known to move"
        )
    missing, extra = sorted(expected - found), sorted(found - expected)
    detail = "; ".join(
        text for text in (missing and f"frozen here: {missing}", extra and f"trained here only: {extra}") if text
    )
    return subject.row("trained", "", float(len(missing) + len(extra)), 0.0, not detail, detail)
