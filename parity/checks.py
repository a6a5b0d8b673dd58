"""The checks in the order in which a fault travels, each from evidence to rows, and which failure explains which.

Every check is an entry of ``CHECKS``: its name, the function that gives its rows, the checks whose failure explains one
of its own, and what it needs to have a subject; where that is missing, one row says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile

import torch

from parity.allowed import TIMES, carried, clear, gradient_of, hidden, update_of
from parity.calls import WHOLE, calls_of
from parity.compare import compare, compare_grown, compare_named, compare_series, compare_value
from parity.curves import curve_rows, has_hits, hits_rows
from parity.flow import check_gradient_flow
from parity.locate import compare_calls, compare_inputs, inside_of
from parity.modules import half_precision, module_rows
from parity.rerun import resume_rows, round_trip_rows, throughput_rows, unobserved_loss
from parity.samplers import compare_samplers, samples_of
from parity.setup import initial_rows, setting_rows
from parity.step import audit_row, update_rows
from parity.tensors import original_of, tensor_names, tensor_row
from parity.tolerances import EXACT, Kind, Tolerance
from parity.trace import STATES, Trace
from parity.trace_pair import Check, TracePair, explained, raised
from parity.verdict import Against, Row, Status

MODES = {
    "threads": 1,
    "tf32": False,
    "matmul_precision": "highest",
    "default_dtype": "torch.float32",
    "deterministic": True,
}
STEPPED = ("optimizer_step", "curve", "hits")
"""Checks of what an optimizer made, whose tails are heavy."""

FAR = 8.0
"""So many times its bound of few draws, nothing else comes within that of many."""

ON_REQUEST = ("initialisation", "throughput")
"""Asked for by name: weights that the original gives are drawn by nobody, and speed takes time."""


def check_environment(evidence: TracePair) -> list[Row]:
    """The numeric modes that make a run repeatable, as they must be; and that looking on changes no bit of the loss."""
    subject, found = evidence.subject("environment"), evidence.found.environment
    rows = [compare_value(subject, "mode", name, value, found.get(name)) for name, value in MODES.items()]
    for trace in evidence.traces:
        if said := trace.configuration.get("ranks"):
            rows.append(compare_value(subject, "ranks", f"{trace.run}: not the same on all", [], said["apart"]))
            rows.append(compare_value(subject, "ranks", f"{trace.run}: seeds", said["wanted"], said["seeds"]))
    for trace, alive in zip(evidence.traces, (evidence.original, evidence.alive)):
        if alive is not None:
            plain, watched = unobserved_loss(alive), trace.curve[0].loss
            both = (None, None) if math.isnan(plain) and math.isnan(watched) else (plain, watched)
            rows.append(compare_value(subject, "observed", f"loss of {trace.run}", *both))
    return rows


def check_configuration(evidence: TracePair) -> list[Row]:
    """What each side says it runs with, entry by entry: optimizer, groups, what is trained, attention, buffers."""
    sides = [trace.configuration for trace in evidence.traces]
    return setting_rows(evidence.subject("configuration"), sides[0], sides[1], evidence.names)


def check_initialisation(evidence: TracePair) -> list[Row]:
    """How each side draws its own initial weights: mean and standard deviation of each, in standard errors."""
    sides = [trace.configuration for trace in evidence.traces]
    return initial_rows(evidence.subject("initialisation"), sides[0], sides[1], evidence.names)


def check_weights(evidence: TracePair) -> list[Row]:
    """Parameters and saved buffers at the start; one row says so where they are no numbers, the rest follows."""
    for trace in evidence.traces:
        if bad := _not_finite(trace):
            detail = f"NaN or Inf in {len(bad)} of them before any step, {trace.run}: {', '.join(bad[:5])}"
            return [evidence.subject("weights").row("finite", f"init.{bad[0]}", float(len(bad)), 0.0, False, detail)]
    return states(evidence, "init")


def _not_finite(trace: Trace) -> list[str]:
    """Parameters and saved buffers that are no numbers at the start."""
    weights = {name: value for name, value in trace.group("init.").items() if value.is_floating_point()}
    return [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]


def check_optimizer_step(evidence: TracePair) -> list[Row]:
    """What the first step made of every parameter and saved buffer; every step computed again."""
    rows, audits = states(evidence, "after"), evidence.found.audits
    allowed = [evidence.tolerance(name) for name in ("update", "state", "rows")]
    subject = evidence.subject("optimizer_step", Against.REFERENCE)
    return rows + (update_rows(subject, audits, *allowed) if audits else [])


def check_curve(evidence: TracePair) -> list[Row]:
    """Every series of the curve, and what the state is at its end."""
    return curve_rows(evidence) + states(evidence, "final")


def states(evidence: TracePair, group: str) -> list[Row]:
    """One row for every name of a group that the original has or must have; none where a trace left the group out."""
    check, quantity = STATES[group]
    expected, found = (trace.group(f"{group}.") for trace in evidence.traces)
    if not (expected and found) and (not expected or group in (*evidence.expected.left_out, *evidence.found.left_out)):
        return []
    names = sorted({*expected, *evidence.wanted(found)})
    return [state_row(evidence, check, quantity, f"{group}.{name}") for name in names]


def state_row(evidence: TracePair, check: str, quantity: str, name: str) -> Row:
    """One parameter or buffer: what the run made of it, ``after - init``, relative to what the original's made.

    Entries that rounding may send either way are set aside, see :func:`parity.allowed.clear`; what the weight's last
    place hides is allowed besides. What the original does not train, starts and whole numbers are held as they are.
    """
    group, _, parameter = name.partition(".")
    sides, subject = evidence.traces, evidence.subject(check)
    mine, theirs = (trace.tensors.get(name) for trace in sides)
    if mine is None or theirs is None or mine.shape != theirs.shape or group == "init" or quantity in evidence.own:
        return compare_named(subject, quantity, name, mine, theirs, evidence.own.get(quantity, EXACT))
    trained, tied = evidence.trained_by_original(), evidence.tied_to(parameter)
    if not mine.is_floating_point() or not {parameter, tied} & trained:
        row = compare_named(subject, quantity, name, mine, theirs, EXACT if mine.dtype == theirs.dtype else ALIKE)
        starts = [trace.tensors.get(f"init.{parameter}") for trace in sides]
        known = [(start, end) for start, end in zip(starts, (mine, theirs)) if start is not None]
        still = bool(known) and all(torch.equal(start.to(end.dtype), end) for start, end in known)
        return row.uncounted(Status.UNMOVED) if still else row
    moves = [update_of(trace, group, parameter) for trace in sides]
    if moves[0] is None or moves[1] is None:
        return subject.silent(quantity, name, None, None, "a trace without its start: nobody knows how far it moved")
    gradient = gradient_of(original_of(evidence, "gradients")[0], tied)
    kept = clear(gradient, moves[0], evidence.spread, tied)
    steps = sum(point.stepped for point in evidence.expected.curve) if group == "final" else 1
    rounding, last = evidence.allowed(quantity, name), hidden(mine, moves[0], kept, theirs.dtype, steps)
    through = carried(gradient, moves[0], kept, evidence.spread, tied) if group == "after" else 0.0
    if rounding.source == "rounding" and through > rounding.bound:
        rounding = replace(rounding, bound=through, reason=f"{TIMES:g} times one rounding, through the gradient")
    reason, aside = f"{rounding.reason}; {last:.1e} hidden by the weights' last place", int((~kept).sum())
    reason += f"; {aside} of {kept.numel()} entries set aside, whose gradient is 0 within rounding" if aside else ""
    bound = Tolerance(Kind.RMS, rounding.bound + last, reason, rounding.source)
    return compare(subject, quantity, name, moves[0] * kept, moves[1] * kept, bound)


ALIKE = Tolerance(Kind.RMS, 2.0**-8, "frozen, and stored in half precision on one side")


def check_samplers(evidence: TracePair) -> list[Row]:
    """What both draw at random, over many seeds: how many entries, which ever come, how often."""
    subject, sides = evidence.subject("samplers"), [samples_of(trace) for trace in evidence.traces]
    names = sorted({*sides[0], *sides[1]})
    return [row for name in names for row in compare_samplers(subject, name, *(side.get(name, []) for side in sides))]


def check_forward(evidence: TracePair) -> list[Row]:
    """Taps in the order in which the original's are made, what else the trace names, then every output of every call.

    Calls stand in the order in which the original's end.
    """
    order = {name: place for place, name in enumerate(evidence.expected.tensors) if ".tap." in name}
    named = sorted(
        tensor_names(evidence, "forward"), key=lambda name: (".tap." not in name, order.get(name, len(order)), name)
    )
    rows = [tensor_row(evidence, "forward", name) for name in named]
    subject, allowed = evidence.subject("forward"), partial(evidence.allowed, "out")
    expected, found = (calls_of(trace) for trace in evidence.traces)
    if not (expected and found):
        return rows
    other, modules = {call.key: call for call in found}, {call.module for call in found}
    for call in (call for call in expected if call.module in modules):
        match = other.get(call.key)
        rows += [] if match is None else compare_inputs(subject, call, match, allowed)
        rows += compare_calls(subject, call, match, allowed)
    return rows + _one_sided(evidence)


def _one_sided(evidence: TracePair) -> list[Row]:
    """Modules that one side alone calls, with nothing called inside them, and those it calls more often."""
    subject, (expected, found) = evidence.subject("forward"), map(_counts, evidence.traces)
    remedies = "the original alone calls it: None in the name map", "the port alone calls it: only_port in the name map"
    rows = [
        subject.failed("calls", module, f"{remedy}, if that is right")
        for mine, theirs, remedy in ((expected, found, remedies[0]), (found, expected, remedies[1]))
        for module in sorted({*mine} - {*theirs})
        if not any(inside_of(name, module) for name in mine) and _is_wanted(evidence, module)
    ]
    more = [module for module in sorted({*expected} & {*found}) if expected[module] < found[module]]
    return rows + [compare_value(subject, "calls", module, expected[module], found[module]) for module in more]


def _counts(trace: Trace) -> Counter[str]:
    """How often each module is called."""
    return Counter(call.rpartition("#")[0] for call in trace.calls)


def _is_wanted(evidence: TracePair, module: str) -> bool:
    """Says the map nothing of it: that one side has none, or what its parameters are made of?"""
    names = evidence.names
    if not names.expected_of(module) or (module == WHOLE and names.to_port(WHOLE) is None):
        return False
    sources = [name for entry in names.fused.values() for name in entry.originals]
    targets = [*filter(None, names.prefixes.values()), *names.fused, *sources]
    return not any(target.startswith(f"{module}.") for target in targets)


def check_clip(evidence: TracePair) -> list[Row]:
    """By the rule where one is known, and beside the original's norms after clipping.

    These are compared up to the first step that gets other gradients than the original's: that is an earlier step's
    doing, and ``curve`` fails, which holds the norms before.
    """
    (mine, theirs), rows = (trace.audits for trace in evidence.traces), []
    if _has_rule(evidence):
        rows.append(audit_row(evidence.subject("clip", Against.REFERENCE), theirs, "clip", evidence.tolerance("clip")))
    if not mine:
        return rows
    bounds, last = evidence.grown("grad_norm", "grad_norm", len(mine))
    gaps = (abs(a.norm_before - b.norm_before) / (a.norm_before or 1.0) for a, b in zip(mine, theirs))
    alike = max(1, sum(takewhile(bool, (gap <= bound for gap, bound in zip(gaps, bounds)))))
    count = alike if len(mine) == len(theirs) else None
    series = [[audit.norm_after for audit in side][:count] for side in (mine, theirs)]
    name = "norm_after" if count == len(mine) else f"norm_after, the first {count} of {len(mine)} steps"
    return [*rows, compare_grown(evidence.subject("clip"), "grad_norm", name, series, bounds[:count], last)]


def _has_rule(evidence: TracePair) -> bool:
    return any("clip" in audit.deviations for audit in evidence.found.audits)


def check_schedule(evidence: TracePair) -> list[Row]:
    """The rate of every step whose rate is known against the schedule's formula."""
    subject, allowed = evidence.subject("schedule", Against.REFERENCE), evidence.tolerance("lr")
    rates = [(audit.lr_expected, audit.lr_used) for audit in evidence.found.audits if audit.lr_expected is not None]
    return [compare_series(subject, "rate", "every step", [a for a, _ in rates], [b for _, b in rates], allowed)]


Need = tuple[Callable[[TracePair], object], str]
"""What has to be there for a check to have a subject, and the reason that its row gives where it is not."""


def needs(*asked: Need) -> Callable[[TracePair], str | None]:
    """Why a check does not apply: by the first thing that is not there; None where all are."""
    return lambda evidence: next((reason for is_there, reason in asked if not is_there(evidence)), None)


def _of_tensors(check: str, follows: tuple[str, ...], reason: str, *asked: Need) -> Check:
    """A check of every tensor that belongs to it."""

    def rows(evidence: TracePair) -> list[Row]:
        return [tensor_row(evidence, check, name) for name in tensor_names(evidence, check)]

    return Check(check, rows, follows, needs(*asked, (lambda evidence: tensor_names(evidence, check), reason)))


def _kept(group: str) -> tuple[Need, Need]:
    """The state is in both traces."""
    return (
        (lambda e: not any(group in trace.left_out for trace in e.traces), "left out of a trace"),
        (lambda e: e.expected.group(f"{group}."), "the original's trace has none"),
    )


AUDITS: Need = (lambda e: e.found.audits, "no optimizer step was computed again")
RATE: Need = (
    lambda e: any(audit.lr_expected is not None for audit in e.found.audits),
    "no formula of the rate is known: Side(rate=...)",
)
CLIP: Need = (lambda e: _has_rule(e) or e.expected.audits, "nobody says how gradients are clipped: Side(clip=...)")
MODES_KNOWN: Need = (lambda e: e.found.environment, "the trace says nothing of its environment")
SETTINGS: Need = (lambda e: all(t.configuration for t in e.traces), "a trace says nothing of what it ran with")
SETUP: Need = (
    lambda e: all("requires_grad" in trace.configuration for trace in e.traces),
    "a trace says nothing of how its run was set up",
)
SAMPLES: Need = (lambda e: any(map(samples_of, e.traces)), "neither side draws anything that has a name")
OUTPUTS: Need = (lambda e: all(t.calls for t in e.traces) or tensor_names(e, "forward"), "no output is in both traces")
FLOW: Need = (
    lambda e: (e.found.trained or e.found.frozen) and e.found.group("mb") and not e.found.left_out,
    "a trace without gradients",
)
FINITE: Need = (lambda e: not _not_finite(e.found), "its weights are no numbers before any step")
HITS: Need = (has_hits, "neither side counts rows or prints")
RERUNNABLE: Need = (lambda e: e.alive, "a trace leaves nothing to run again")
BOTH_RERUNNABLE: Need = (lambda e: e.original, RERUNNABLE[1])
HALF: Need = (
    lambda e: half_precision(e.expected),
    "nothing is computed in half precision, where alone `forward` says little",
)
ONE_PROCESS: Need = (
    lambda e: {1} == {one.side.ranks for one in (e.original, e.alive) if one},
    "a side runs on several processes",
)


CHECKS: tuple[Check, ...] = (
    Check("environment", check_environment, (), needs(MODES_KNOWN), Against.SELF_CONSISTENCY),
    Check("configuration", check_configuration, (), needs(SETTINGS)),
    Check("weights", check_weights, (), needs(*_kept("init"))),
    _of_tensors("batches", ("weights",), "both sides are given the same batches"),
    _of_tensors("draws", ("batches",), "neither side draws anything that has a name"),
    Check("samplers", check_samplers, (), needs(SAMPLES)),
    _of_tensors("targets", ("batches", "draws"), "there are no targets by name"),
    Check("forward", check_forward, ("weights", "batches", "draws"), needs(OUTPUTS)),
    Check("modules", module_rows, ("forward",), needs(BOTH_RERUNNABLE, HALF, ONE_PROCESS)),
    _of_tensors("loss", ("targets", "forward"), "no loss is in a trace"),
    _of_tensors("cross_step_grad", ("loss",), "nobody says that the model is unrolled: parity.unrolled"),
    _of_tensors("gradients", ("loss", "cross_step_grad"), "no gradient is in a trace"),
    Check("gradient_flow", check_gradient_flow, (), needs(FLOW, FINITE)),
    Check("clip", check_clip, ("gradients",), needs(AUDITS, CLIP)),
    Check("schedule", check_schedule, (), needs(AUDITS, RATE)),
    Check(
        "optimizer_step",
        check_optimizer_step,
        ("gradients", "clip", "schedule"),
        lambda e: None if e.found.audits else needs(*_kept("after"))(e),
    ),
    Check("curve", check_curve, ("optimizer_step",)),
    Check("hits", hits_rows, ("curve",), needs(HITS)),
    Check("round_trip", round_trip_rows, (), needs(RERUNNABLE, FINITE), Against.SELF_CONSISTENCY),
    Check("resume", resume_rows, ("round_trip",), needs(RERUNNABLE, FINITE), Against.SELF_CONSISTENCY),
    Check("initialisation", check_initialisation, (), needs(SETUP)),
    Check("throughput", throughput_rows, (), needs(RERUNNABLE, BOTH_RERUNNABLE, ONE_PROCESS)),
)
NAMES = tuple(check.name for check in CHECKS if check.name not in ON_REQUEST)
"""What is compared by default."""


def with_own(own: Iterable[Check]) -> tuple[Check, ...]:
    """The checks of a pair: its own take the places of those of the same name, others come before ``throughput``."""
    replaced = {check.name: check for check in own}
    core = [replaced.pop(check.name, check) for check in CHECKS]
    return (*core[:-1], *replaced.values(), core[-1])


def run_checks(evidence: TracePair, checks: Iterable[Check] = CHECKS, only: Collection[str] | None = None) -> list[Row]:
    """Every check on one piece of evidence, in order; what follows from an earlier failure is blocked."""
    asked = [check for check in checks if only is None or check.name in only]
    rows = _judged(evidence, asked)
    while may_be_rounding(evidence, rows) and evidence.widen():
        rows = _judged(evidence, asked)
    return rows


def _judged(evidence: TracePair, checks: Sequence[Check]) -> list[Row]:
    """All rows under the bounds that there are; what follows from an earlier failure is blocked."""
    rows = [row for check in checks for row in _asked(evidence, check)]
    return explained(rows, {check.name: check.follows for check in checks})


def may_be_rounding(evidence: TracePair, rows: Iterable[Row]) -> bool:
    """Is everything that failed beyond what few draws did, and by no more than further draws may show?

    Forward and backward of one step have no heavy tail; what an optimizer makes of them has, until signs were turned.
    """
    failed = [row for row in rows if row.status is Status.FAILED]
    heavy = () if evidence.stage else STEPPED
    near = (row.check in heavy or (row.ratio or math.inf) < FAR for row in failed)
    return bool(failed) and all(row.bound == "rounding" for row in failed) and all(near)


def run_check(evidence: TracePair, check: Check) -> list[Row]:
    """The rows of one check, never none: a reason where it does not apply, a failure where it raised.

    What is beyond its bound is held against that of more draws.
    """
    rows = _asked(evidence, check)
    while may_be_rounding(evidence, rows) and evidence.widen():
        rows = _asked(evidence, check)
    return rows


def _asked(evidence: TracePair, check: Check) -> list[Row]:
    subject = evidence.subject(check.name, check.against)
    reason = check.reason(evidence)
    if reason:
        return [subject.inapplicable(reason)]
    try:
        rows = check.run(evidence)
    except Exception as error:  # a port that gives something no check was ready for
        return [raised(subject, error)]
    rows = [row if row.against is not Against.PROTOTYPE else replace(row, against=check.against) for row in rows]
    rows = [row.uncounted(Status.GIVEN) if row.tensor in evidence.handed else row for row in rows]
    rows = [replace(row, beside=True) for row in rows] if evidence.beside else rows
    return rows or [subject.failed("comparisons", "", "nothing compared")]
