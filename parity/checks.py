"""The checks in the order in which a fault travels, each from evidence to rows, and which failure explains which."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parity.calls import WHOLE, Call, below, calls_of
from parity.compare import (
    Subject,
    compare,
    compare_groups,
    compare_named,
    compare_series,
    compare_traced,
    compare_value,
)
from parity.curves import curve_rows, has_hits, hits_rows
from parity.evidence import Check, Evidence, raised
from parity.locate import compare_calls, compare_inputs, paired_inputs
from parity.observe import Compared
from parity.precision import distance_rows, tensor_rows
from parity.rerun import resume_rows, round_trip_rows, throughput_rows
from parity.setup import broken, compare_setups
from parity.side import Alive
from parity.step import clip_rows, schedule_rows, update_rows
from parity.trace import STATES
from parity.verdict import Against, GradientFlow, Row, explained

Reason = Callable[[Evidence], "str | None"]
"""Why a check has no subject in a piece of evidence; None: it has."""

PLACES = (
    (re.compile(r"mb\d+\.batch\."), "batches", "batch"),
    (re.compile(r"mb\d+\.draw\."), "draws", "draw"),
    (re.compile(r"mb\d+\.(grad|tap_grad)\."), "gradients", "grad"),
    (re.compile(r"mb\d+\.grad_norm$"), "gradients", "grad_norm"),
    (re.compile(r"mb\d+\.path\."), "paths", "path"),
    (re.compile(r"mb\d+\.target_p$"), "targets", "target_p"),
    (re.compile(r"mb\d+(\.step\d+)?\.loss$"), "loss", "loss"),
    (re.compile(r"mb\d+\.call\."), "", ""),
    (re.compile(r"mb\d+\."), "forward", ""),
)
"""Tensors of a trace that are no state and no call: check and quantity by name, the first that fits.

Where the quantity is empty it is the last word of the name, an output's where the table has no such row.
"""

MODES = {
    "threads": 1,
    "tf32": False,
    "matmul_precision": "highest",
    "default_dtype": "torch.float32",
    "deterministic": True,
}
SETUP = ("optimizer", "schedule", "attention", "groups", "requires_grad", "buffers", "initial")
INITIAL = "initial"
ON_REQUEST = ("initialisation", "throughput")
"""Asked for by name: weights that the original gives are drawn by nobody, and speed takes time."""

MOST_UNDETERMINED = 0.02
"""A row of parameters that needs more of its entries left out than this fails all the same."""


def place_of_tensor(name: str) -> tuple[str, str]:
    """Check and quantity of a tensor of a micro-batch."""
    return next(((check, quantity) for form, check, quantity in PLACES if form.match(name)), ("", ""))


def traced(check: str) -> Callable[[Evidence], list[Row]]:
    """Every tensor that belongs to a check."""

    def rows(evidence: Evidence) -> list[Row]:
        return [_named(evidence, check, name) for name in _names(evidence, check)]

    return rows


def _names(evidence: Evidence, check: str) -> list[str]:
    """The original's, and those of the port that it must have; gradients of micro-batches it kept none of are not."""
    expected, found = ([n for n in trace.tensors if place_of_tensor(n)[0] == check] for trace in evidence.traces)
    kept = {name.partition(".grad.")[0] for name in expected if ".grad." in name}
    further = [name for name in set(found) - set(expected) if _is_expected(evidence, name)]
    return sorted({*expected, *(n for n in further if check != "gradients" or not kept or n.partition(".")[0] in kept)})


def _is_expected(evidence: Evidence, name: str) -> bool:
    return evidence.names.expected_of(name.partition(".grad.")[2] or name)


def _named(evidence: Evidence, check: str, name: str) -> Row:
    word = place_of_tensor(name)[1] or name.rpartition(".")[2]
    quantity = word if word in evidence.table else "out"
    return compare_traced(
        evidence.subject(check), quantity, name, evidence.traces, evidence.tolerance(quantity), evidence.views
    )


def check_environment(evidence: Evidence) -> list[Row]:
    """The numeric modes that make a run repeatable, as they must be."""
    subject, found = evidence.subject("environment"), evidence.found.environment
    return [compare_value(subject, "mode", name, value, found.get(name)) for name, value in MODES.items()]


def check_configuration(evidence: Evidence) -> list[Row]:
    """What each side says it runs with, entry by entry; what one side alone says is a difference.

    Where both were read from live objects: optimizer, groups, what is trained, attention and buffers as they are.
    """
    subject, rows = evidence.subject("configuration"), []
    plain = [dict(trace.configuration) for trace in evidence.traces]
    if not _no_setup(evidence):
        setups = [{key: side.pop(key) for key in SETUP if key in side} for side in plain]
        rows = [
            subject.row(*one) for one in compare_setups(setups[0], setups[1], evidence.names) if _is_shared(one, setups)
        ]
    expected, found = (dict(flat(side)) for side in plain)
    names = sorted({*expected, *found})
    return rows + [
        compare_value(subject, "configuration", name, expected.get(name, "nothing"), found.get(name, "nothing"))
        for name in names
    ]


def _is_shared(one: Compared, setups: list[dict[str, Any]]) -> bool:
    """What both sides have: parameters of one alone are the business of ``weights``, and may be joined or copied."""
    if one.quantity in ("requires_grad", "buffers"):
        return "None" not in one.detail.split(" / ")
    if one.quantity == "attention":  # a module without a configuration names none
        return all(setup.get("attention") for setup in setups)
    return not (one.quantity.startswith(INITIAL) or one.tensor.startswith("parameters["))


def check_initialisation(evidence: Evidence) -> list[Row]:
    """How each side draws its own initial weights: mean and standard deviation of each, in standard errors."""
    subject = evidence.subject("initialisation")
    compared = compare_setups(evidence.expected.configuration, evidence.found.configuration, evidence.names)
    return [subject.row(*one) for one in compared if one.quantity.startswith(INITIAL)]


def flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Entries of nested mappings and of lists of mappings by dotted names."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = list(enumerate(value))
    else:
        yield name, list(value) if isinstance(value, tuple) else value
        return
    for key, item in items:
        yield from flat(item, f"{name}.{key}" if name else str(key))


def check_weights(evidence: Evidence) -> list[Row]:
    """Parameters and saved buffers at the start; one row says so where they are no numbers, the rest follows."""
    subject = evidence.subject("weights")
    bad = [subject.row(*one) for trace in evidence.traces if (one := broken(trace.group("init."))) is not None]
    return bad or states(evidence, "init")


def check_optimizer_step(evidence: Evidence) -> list[Row]:
    """Every parameter and saved buffer after the first step, unless rounding dominates; every step computed again."""
    return ([] if evidence.in_half else states(evidence, "after")) + audited("optimizer_step")(evidence)


def check_curve(evidence: Evidence) -> list[Row]:
    """Every series of the curve, and what the state is at its end."""
    return curve_rows(evidence) + ([] if evidence.in_half else states(evidence, "final"))


def states(evidence: Evidence, group: str) -> list[Row]:
    """One row for every name of a group that the original has or must have; none where a trace left the group out."""
    check, quantity = STATES[group]
    expected, found = (trace.group(f"{group}.") for trace in evidence.traces)
    if not (expected and found) and (not expected or group in (*evidence.expected.left_out, *evidence.found.left_out)):
        return []
    names = sorted({*expected, *evidence.wanted(found)})
    pairs = {name: (expected.get(name), found.get(name)) for name in names}
    return compare_states(evidence, check, quantity, {f"{group}.{name}": pair for name, pair in pairs.items()})


def compare_states(
    evidence: Evidence, check: str, quantity: str, pairs: dict[str, tuple[Tensor | None, Tensor | None]]
) -> list[Row]:
    """What only entries break whose gradient is below its own tolerance passes.

    Adam's first step is lr * sign(g): there two correct implementations may go either way, and differ by 2 * lr.
    """
    subject, tolerance, rows = evidence.subject(check), evidence.tolerance(quantity), []
    last = evidence.micro_batches()[-1]
    for name, (expected, found) in pairs.items():
        row = compare_named(subject, quantity, name, expected, found, tolerance)
        grad = evidence.expected.tensors.get(f"mb{last}.grad.{name.partition('.')[2]}")
        if not row.passed and row.measured is not None and expected is not None and found is not None:
            row = _determined(row, subject, grad, expected, found, evidence) or row
        rows.append(row)
    return rows


def _determined(
    row: Row, subject: Subject, grad: Tensor | None, expected: Tensor, found: Tensor, evidence: Evidence
) -> Row | None:
    if grad is None or row.quantity == "weights" or grad.shape != expected.shape:
        return None
    clear = grad.abs() > evidence.tolerance("grad").bound * grad.abs().max()
    left_out = int((~clear).sum())
    if not 0 < left_out <= MOST_UNDETERMINED * clear.numel():
        return None
    again = compare(subject, row.quantity, row.tensor, expected, found, evidence.tolerance(row.quantity), where=clear)
    note = f"{left_out} of {clear.numel()} entries left out: their gradient is below its own tolerance"
    return replace(again, detail=f"{note}. {again.detail}")


def check_forward(evidence: Evidence) -> list[Row]:
    """Taps, what the trace names, then every output of every call in the order in which the original's calls end."""
    named = sorted(_names(evidence, "forward"), key=lambda name: (".tap." not in name, name))
    rows = [_named(evidence, "forward", name) for name in named]
    subject, tolerance = evidence.subject("forward"), evidence.tolerance("out")
    expected, found = (calls_of(trace) for trace in evidence.traces)
    if not (expected and found):
        return rows
    other, counts = {call.key: call for call in found}, {call.module for call in found}
    for call in (call for call in expected if call.module in counts):
        match = other.get(call.key)
        rows += [] if match is None else _given(evidence, call, match)
        rows += compare_calls(subject, call, match, tolerance)
    return rows + _one_sided(evidence)


def _given(evidence: Evidence, expected: Call, found: Call) -> list[Row]:
    """Ids, positions and masks, in whatever form, that a module is called with; states are somebody's outputs."""
    rows = compare_inputs(evidence.subject("forward"), expected, found, evidence.tolerance("out"))
    pairs = paired_inputs(expected, found)
    given = ("mask" in place or not mine.is_floating_point() for place, mine, _ in pairs)
    return [row for row, wanted in zip(rows, given, strict=True) if wanted]


def _one_sided(evidence: Evidence) -> list[Row]:
    """Modules that one side alone calls, with nothing called inside them, and those it calls more often."""
    subject, rows = evidence.subject("forward"), []
    counts = [_counts(trace.calls) for trace in evidence.traces]
    remedies = "the original alone calls it: None in the name map", "the port alone calls it: only_port in the name map"
    for mine, theirs, remedy in ((counts[0], counts[1], remedies[0]), (counts[1], counts[0], remedies[1])):
        for module in sorted(set(mine) - set(theirs)):
            if _is_leaf(module, mine) and _is_wanted(evidence, module):
                rows.append(subject.row("calls", module, None, None, False, f"{remedy}, if that is right"))
    for module in sorted(set(counts[0]) & set(counts[1])):
        if counts[0][module] < counts[1][module]:
            rows.append(compare_value(subject, "calls", module, counts[0][module], counts[1][module]))
    return rows


def one_sided_notes(evidence: Evidence) -> list[str]:
    """Modules around others that one side alone calls: what is inside them is compared."""
    counts = [_counts(trace.calls) for trace in evidence.traces]
    if not all(counts):
        return []
    only = [sorted(m for m in set(a) - set(b) if not _is_leaf(m, a)) for a, b in (counts, counts[::-1])]
    sides = zip(("the original", "the port"), only)
    return [f"called by {side} alone, its parts are compared: {', '.join(names)}" for side, names in sides if names]


def _counts(calls: Collection[str]) -> dict[str, int]:
    modules = [call.rpartition("#")[0] for call in calls]
    return {module: modules.count(module) for module in dict.fromkeys(modules)}


def _is_leaf(module: str, called: Iterable[str]) -> bool:
    return not any(name != module and (module == WHOLE or below(name, module)) for name in called)


def _is_wanted(evidence: Evidence, module: str) -> bool:
    """Says the map nothing of it: that one side has none, or what its parameters are made of?"""
    names = evidence.names
    if not names.expected_of(module) or (module == WHOLE and names.to_port(WHOLE) is None):
        return False
    sources = [name for entry in names.joined.values() for name in entry.originals]
    targets = [*filter(None, names.prefixes.values()), *names.joined, *sources]
    return not any(target.startswith(f"{module}.") for target in targets)


def check_paths(evidence: Evidence) -> list[Row]:
    """|d loss_s / d hidden_i| for every pair of steps i <= s: against the oracle where there is one, else the original.

    A path that is cut on one side shows as a norm of zero there, or as a contribution that is missing from the norm.
    """
    against = Against.PROTOTYPE if evidence.oracle is None else Against.REFERENCE
    sides = evidence.expected if evidence.oracle is None else evidence.oracle(), evidence.found
    mine, theirs = (
        {f"loss{s} -> hidden{i}": norm for (s, i), norm in _by_steps(side.group("mb0.path."))} for side in sides
    )
    return compare_groups(evidence.subject("paths", against), "path", mine, theirs, evidence.tolerance("path"))


def _by_steps(norms: dict[str, Tensor]) -> Iterable[tuple[list[str], Tensor]]:
    return ((name.split("."), norm.double()) for name, norm in norms.items())


def check_gradient_flow(evidence: Evidence) -> list[Row]:
    """The same parameters trained; each with a finite gradient that is not zero, and moved; each frozen one neither.

    What is wrong in the same way with the original is no difference.
    """
    subject = evidence.subject("gradient_flow")
    rows = [_same_names(subject, evidence.trained_by_original(), set(evidence.wanted(evidence.found.trained)))]
    mine = {flow.parameter: flow for flow in gradient_flow(evidence, evidence.expected)}
    for flow in gradient_flow(evidence, evidence.found):
        fault = _fault(flow)
        own = mine.get(flow.parameter)
        fine = not fault or (own is not None and _fault(own) == fault)
        rows.append(subject.row("flow", flow.parameter, flow.grad_max, None, fine, fault))
    return rows


def gradient_flow(evidence: Evidence, trace: Any = None) -> list[GradientFlow]:
    """Gradient size and distance moved of every parameter of a side, the found one by default."""
    trace = trace or evidence.found
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
        detail = "nothing compared: no parameter of the original is known to move"
        return subject.row("trained", "", None, 0.0, False, detail)
    missing, extra = sorted(expected - found), sorted(found - expected)
    said = (missing and f"frozen here: {missing}", extra and f"trained here only: {extra}")
    detail = "; ".join(text for text in said if text)
    return subject.row("trained", "", float(len(missing) + len(extra)), 0.0, not detail, detail)


def audited(check: str) -> Callable[[Evidence], list[Row]]:
    """Rows of the optimizer steps that were computed again from what entered them."""

    def rows(evidence: Evidence) -> list[Row]:
        subject, audits = evidence.subject(check, Against.REFERENCE), evidence.found.audits
        if not audits:
            return []
        if check == "clip":
            return _clip_rows(evidence, subject)
        if check == "schedule":
            return schedule_rows(subject, audits, evidence.tolerance("lr"))
        return update_rows(subject, audits, *(evidence.tolerance(name) for name in ("update", "state", "rows")))

    return rows


def _clip_rows(evidence: Evidence, subject: Subject) -> list[Row]:
    """By the rule where one is known; else the first step's norms before and after, beside the original's."""
    if any("clip" in audit.deviations for audit in evidence.found.audits):
        return clip_rows(subject, evidence.found.audits, evidence.tolerance("clip"))
    rows, sides = [], [trace.audits[:1] for trace in evidence.traces]
    for name in ("norm_before", "norm_after") if all(sides) else ():
        mine, theirs = ([getattr(audit, name) for audit in audits] for audits in sides)
        own = evidence.subject("clip")
        rows.append(compare_series(own, "grad_norm", name, mine, theirs, evidence.tolerance("grad_norm")))
    return rows


def precision_rows(evidence: Evidence) -> list[Row]:
    """Tensors and losses by their distance from float64, the port's over the original's own."""
    assert evidence.oracle is not None
    allowed = {name: evidence.tolerance(name) for name in ("error_ratio", "loss_error", "distance", "drift")}
    sides, subject = (evidence.oracle(), *evidence.traces), evidence.subject("precision")
    return [*tensor_rows(subject, *sides, evidence.real, allowed), *distance_rows(subject, *sides, allowed)]


def _compared_directly(evidence: Evidence) -> str | None:
    return None if evidence.in_half else "no half precision with a float64 oracle: compared directly"


def _has(check: str, reason: str) -> Reason:
    """Applicable where either side has a tensor of the check."""

    def inapplicable(evidence: Evidence) -> str | None:
        return None if _names(evidence, check) else reason

    return inapplicable


def _directly(inapplicable: Reason) -> Reason:
    """Numbers are compared with each other unless rounding dominates."""
    half = "half precision: judged by its error against float64 (precision)"
    return lambda evidence: half if evidence.in_half else inapplicable(evidence)


def _no_environment(evidence: Evidence) -> str | None:
    return None if evidence.found.environment else "the trace says nothing of its environment"


def _no_configuration(evidence: Evidence) -> str | None:
    return None if all(t.configuration for t in evidence.traces) else "a trace says nothing of what it ran with"


def _no_setup(evidence: Evidence) -> str | None:
    read = all("requires_grad" in trace.configuration for trace in evidence.traces)
    return None if read else "a trace says nothing of how its run was set up"


def _no_state(group: str) -> Reason:
    def inapplicable(evidence: Evidence) -> str | None:
        if any(group in trace.left_out for trace in evidence.traces):
            return "left out of a trace"
        return None if evidence.expected.group(f"{group}.") else "the original's trace has none"

    return inapplicable


def _no_forward(evidence: Evidence) -> str | None:
    calls = all(trace.calls for trace in evidence.traces)
    return None if calls or _names(evidence, "forward") else "no output is in both traces"


def _no_paths(evidence: Evidence) -> str | None:
    expected = evidence.oracle is not None or bool(evidence.expected.group("mb0.path."))
    return None if expected and evidence.found.group("mb0.path.") else "the model is not unrolled"


def _no_flow(evidence: Evidence) -> str | None:
    named = evidence.found.trained or evidence.found.frozen
    return None if named and evidence.found.group("mb") and not evidence.found.left_out else "a trace without gradients"


def _not_audited(evidence: Evidence) -> str | None:
    return None if evidence.found.audits else "no optimizer step was computed again"


def _no_clip(evidence: Evidence) -> str | None:
    known = any("clip" in audit.deviations for audit in evidence.found.audits) or evidence.expected.audits
    return _not_audited(evidence) or (None if known else "nobody says how gradients are clipped: Side(clip=...)")


def _no_rate(evidence: Evidence) -> str | None:
    known = any(audit.lr_expected is not None for audit in evidence.found.audits)
    return _not_audited(evidence) or (None if known else "no formula of the rate is known: Side(rate=...)")


def _no_step(evidence: Evidence) -> str | None:
    """Applicable where steps were computed again, or where states may be compared directly."""
    return None if evidence.found.audits else _directly(_no_state("after"))(evidence)


def _nothing_to_run(evidence: Evidence) -> str | None:
    return None if isinstance(evidence.live, Alive) else "a trace leaves nothing to run again"


def _nothing_to_time(evidence: Evidence) -> str | None:
    both = isinstance(evidence.original, Alive) and isinstance(evidence.live, Alive)
    return None if both else "a trace leaves nothing to run again"


CHECKS: tuple[Check, ...] = (
    Check("environment", check_environment, (), _no_environment, Against.ITSELF),
    Check("configuration", check_configuration, (), _no_configuration),
    Check("weights", check_weights, (), _no_state("init")),
    Check("batches", traced("batches"), ("weights",), _has("batches", "both sides are given the same batches")),
    Check("draws", traced("draws"), ("batches",), _has("draws", "neither side draws anything that has a name")),
    Check(
        "targets", traced("targets"), ("batches", "draws"), _directly(_has("targets", "there are no targets by name"))
    ),
    Check("forward", check_forward, ("weights", "batches", "draws"), _directly(_no_forward)),
    Check("loss", traced("loss"), ("targets", "forward"), _directly(_has("loss", "no loss is in a trace"))),
    Check("precision", precision_rows, ("batches",), _compared_directly),
    Check("paths", check_paths, ("loss",), _no_paths),
    Check(
        "gradients", traced("gradients"), ("loss", "paths"), _directly(_has("gradients", "no gradient is in a trace"))
    ),
    Check("gradient_flow", check_gradient_flow, (), _no_flow),
    Check("clip", audited("clip"), ("gradients",), _no_clip),
    Check("schedule", audited("schedule"), (), _no_rate),
    Check("optimizer_step", check_optimizer_step, ("gradients", "clip", "schedule"), _no_step),
    Check("curve", check_curve, ("optimizer_step",)),
    Check("hits", hits_rows, ("curve",), lambda e: None if has_hits(e) else "neither side counts rows or prints"),
    Check("round_trip", round_trip_rows, (), _nothing_to_run, Against.ITSELF),
    Check("resume", resume_rows, ("round_trip",), _nothing_to_run, Against.ITSELF),
    Check("initialisation", check_initialisation, (), _no_setup),
    Check("throughput", throughput_rows, (), _nothing_to_time),
)
NAMES = tuple(check.name for check in CHECKS if check.name not in ON_REQUEST)
"""What is compared by default."""


def with_own(own: Iterable[Check]) -> tuple[Check, ...]:
    """The checks of a pair: its own take the places of those of the same name, others come before ``throughput``."""
    replaced = {check.name: check for check in own}
    core = [replaced.pop(check.name, check) for check in CHECKS]
    return (*core[:-1], *replaced.values(), core[-1])


def run_checks(evidence: Evidence, checks: Iterable[Check] = CHECKS, only: Collection[str] | None = None) -> list[Row]:
    """Every check on one piece of evidence, in order; what follows from an earlier failure is blocked."""
    rows = [row for check in checks if only is None or check.name in only for row in run_check(evidence, check)]
    return explained(rows, {check.name: check.follows for check in checks})


def run_check(evidence: Evidence, check: Check) -> list[Row]:
    """The rows of one check, never none: a reason where it does not apply, a failure where it raised."""
    subject = evidence.subject(check.name, check.against)
    reason = check.reason(evidence)
    if reason:
        return [subject.inapplicable(reason)]
    try:
        rows = check.run(evidence)
    except Exception as error:  # a port that gives something no check was ready for
        return [raised(subject, error)]
    rows = [row if row.against is not Against.PROTOTYPE else replace(row, against=check.against) for row in rows]
    return rows or [subject.row("comparisons", "", None, None, False, "nothing compared")]
