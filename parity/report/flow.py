"""Gradient flow: what every parameter received and how far it moved, what needs attention first."""

from __future__ import annotations

import math
from dataclasses import dataclass

from parity.report.numbers import count, short
from parity.report.summary import unique
from parity.verdict import GradientFlow, Report


@dataclass(frozen=True)
class FlowLine:
    """One parameter, and the runs in which it fared alike."""

    parameter: str
    state: str
    grad_max: str
    moved: str
    runs: tuple[str, ...]

    @property
    def alarm(self) -> bool:
        """Dead, or frozen and yet moved, unlike in the baseline."""
        return self.state in ("dead", "frozen but moved")


@dataclass(frozen=True)
class Flow:
    """The gradient flow of one case, what needs attention first."""

    case: str
    lines: tuple[FlowLine, ...]
    summary: str
    alarm: bool


def gradient_flows(report: Report) -> list[Flow]:
    """Per case what every parameter received and how far it moved."""
    cases = unique(flow.case for flow in report.gradient_flow)
    return [_flow(case, [f for f in report.gradient_flow if f.case == case], report.baseline) for case in cases]


def _flow(case: str, flows: list[GradientFlow], baseline: str) -> Flow:
    lines = sorted(_flow_lines(flows, baseline), key=lambda line: not line.alarm)
    alarms = unique(line.parameter for line in lines if line.alarm)
    parameters, frozen = unique(f.parameter for f in flows), unique(f.parameter for f in flows if not f.trainable)
    tail = f", {count(len(alarms))} suspicious" if alarms else ""
    summary = f"{count(len(parameters), 'parameter')}, {count(len(frozen))} frozen{tail}"
    return Flow(case, tuple(lines), summary, bool(alarms))


def _flow_lines(flows: list[GradientFlow], baseline: str) -> list[FlowLine]:
    """The parameters in order; runs that read the same share a line."""
    expected = {(f.parameter, flow_state(f)) for f in flows if f.run == baseline}
    order = {name: index for index, name in enumerate(unique(f.parameter for f in flows))}
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for f in sorted(flows, key=lambda f: order[f.parameter]):
        key = (f.parameter, _beside(flow_state(f), f, baseline, expected), short(f.grad_max), short(f.moved))
        alike.setdefault(key, []).append(f.run)
    return [FlowLine(*key, tuple(runs)) for key, runs in alike.items()]


def _beside(state: str, flow: GradientFlow, baseline: str, expected: set[tuple[str, str]]) -> str:
    """A parameter that is just as dead in the baseline is worth a word, not an alarm."""
    if state in ("trains", "frozen"):
        return state
    return f"{state}, as in {baseline}" if (flow.parameter, state) in expected else state


def flow_state(flow: GradientFlow) -> str:
    """``trains``, ``frozen``, ``dead`` (trainable without gradient or motion) or ``frozen but moved``."""
    if not flow.trainable:
        return "frozen but moved" if flow.moved else "frozen"
    dead = not flow.grad_max or math.isnan(flow.grad_max) or not flow.moved or math.isnan(flow.moved)
    return "dead" if dead else "trains"
