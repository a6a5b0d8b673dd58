"""Which parameters get gradients and move: the check of that, and the numbers it is of."""

from __future__ import annotations

from dataclasses import replace

from parity.compare import bits_of
from parity.trace import Trace
from parity.trace_pair import TracePair
from parity.verdict import GradientFlow, Row


def check_gradient_flow(evidence: TracePair) -> list[Row]:
    """The same parameters trained as in the original; each with a finite gradient that is not zero, and moved.

    Of each frozen one neither. What is wrong in the same way with the original is no difference.
    """
    subject, expected = evidence.subject("gradient_flow"), evidence.trained_by_original()
    if not expected:
        detail = "nothing compared: no parameter of the original is known to move"
        return [subject.failed("trained", "", detail, 0.0)]
    found = evidence.wanted(evidence.found.trained)
    named = {"frozen here": sorted(expected - found), "trained here only": sorted(found - expected)}
    detail = "; ".join(f"{said}: {names}" for said, names in named.items() if names)
    trained = subject.row("trained", "", float(len(expected ^ found)), 0.0, not detail, detail)
    sides = [{flow.parameter: flow.fault for flow in gradient_flow(trace)} for trace in evidence.traces]
    wrong = {name: fault for name, fault in sides[1].items() if fault and sides[0].get(name) != fault}
    detail = "; ".join(f"{name}: {fault}" for name, fault in wrong.items())
    detail = detail or f"{len(sides[1])} parameters get gradients and move as the original's do, or do neither"
    flow = subject.row("flow", next(iter(wrong), ""), float(len(wrong)), 0.0, not wrong, detail)
    return [replace(trained, bits=bits_of(sorted(expected), sorted(found))), flow]


def gradient_flow(trace: Trace) -> list[GradientFlow]:
    """Gradient size and distance moved of every parameter of a side."""
    last = (trace.micro_batches() or [0])[-1]
    grads, begin = trace.group(f"mb{last}.grad."), trace.group("init.")
    end = trace.group("final.") or trace.group("after.")
    flows = []
    for name in [*trace.trained, *trace.frozen]:
        grad = float(grads[name].abs().max()) if name in grads else None
        both = name in end and name in begin and end[name].shape == begin[name].shape
        moved = float((end[name].double() - begin[name].double()).abs().max()) if both else 0.0
        flows.append(GradientFlow(trace.case, trace.run, name, name in trace.trained, grad, moved))
    return flows
