"""The checks in order, and which failure explains which."""

from __future__ import annotations

from collections.abc import Iterable

from parity.blocking import explained
from parity.prototypes.checks.beyond.chain import check_chain
from parity.prototypes.checks.beyond.initial import check_initial
from parity.prototypes.checks.evidence import Check, Evidence
from parity.prototypes.checks.recorded.backward import (
    check_clip,
    check_gradient_flow,
    check_gradients,
    check_optimizer_step,
    check_schedule,
)
from parity.prototypes.checks.recorded.configuration import check_configuration, check_environment
from parity.prototypes.checks.recorded.curve import check_curve, check_hits
from parity.prototypes.checks.recorded.forward import check_batches, check_forward, check_loss, check_targets
from parity.prototypes.checks.recorded.paths import check_paths
from parity.prototypes.checks.recorded.precision import check_precision
from parity.prototypes.checks.recorded.resume import check_resume
from parity.prototypes.checks.recorded.round_trip import check_converted, check_round_trip
from parity.verdict import Row


def _fp32_only(evidence: Evidence) -> str | None:
    return "bfloat16: judged by its error against float64 (precision)" if evidence.is_bf16 else None


def _bf16_only(evidence: Evidence) -> str | None:
    return None if evidence.is_bf16 else "float32: compared directly"


def _port_only(evidence: Evidence) -> str | None:
    return None if evidence.draft is not None else "only a port saves checkpoints and has options"


def _bf16_not_port(evidence: Evidence) -> str | None:
    return _port_only(evidence) and _fp32_only(evidence)


def _port_in_fp32(evidence: Evidence) -> str | None:
    return _port_only(evidence) or _fp32_only(evidence)


def _not_speculators_own(evidence: Evidence) -> str | None:
    if evidence.case.algorithm == "eagle3":
        return "the draft is Speculators' own model"
    return _port_in_fp32(evidence)


def _known_to_speculators(evidence: Evidence) -> str | None:
    if evidence.case.algorithm != "eagle3":
        return f"Speculators has no {evidence.case.algorithm} model and no converter for one"
    return _port_in_fp32(evidence)


def _needs_final(evidence: Evidence) -> str | None:
    if not evidence.expected.group("final."):
        return "the recording kept no final parameters"
    return _known_to_speculators(evidence)


CHECKS: tuple[Check, ...] = (
    Check("environment", check_environment),
    Check("configuration", check_configuration),
    Check("initial", check_initial, inapplicable=_not_speculators_own, once=True),
    Check("batches", check_batches),
    Check("targets", check_targets, follows=("batches",), inapplicable=_fp32_only),
    Check("forward", check_forward, follows=("batches",), inapplicable=_fp32_only),
    Check("loss", check_loss, follows=("targets", "forward"), inapplicable=_fp32_only),
    Check("precision", check_precision, follows=("batches",), inapplicable=_bf16_only),
    Check("paths", check_paths, follows=("loss",)),
    Check("gradients", check_gradients, follows=("loss", "paths"), inapplicable=_fp32_only),
    Check("gradient_flow", check_gradient_flow),
    Check("clip", check_clip, follows=("gradients",), inapplicable=_port_only),
    Check("schedule", check_schedule, inapplicable=_port_only),
    Check(
        "optimizer_step", check_optimizer_step, follows=("gradients", "clip", "schedule"), inapplicable=_bf16_not_port
    ),
    Check("curve", check_curve, follows=("optimizer_step",)),
    Check("hits", check_hits, follows=("curve",)),
    Check("round_trip", check_round_trip, inapplicable=_port_only),
    Check("chain", check_chain, follows=("loss", "paths", "gradients"), inapplicable=_known_to_speculators),
    Check("resume", check_resume, follows=("round_trip",), inapplicable=_port_only),
    Check("converted", check_converted, follows=("curve", "round_trip"), inapplicable=_needs_final),
)


def checks_for(algorithm: str, done: set[tuple[str, str]]) -> list[str]:
    """Names of the checks for one more case; ``done`` are (algorithm, check) that ran in other cases."""
    return [check.name for check in CHECKS if not (check.once and (algorithm, check.name) in done)]


def run_checks(evidence: Evidence, only: Iterable[str] | None = None) -> list[Row]:
    """Every applicable check on one piece of evidence, in order; what follows from an earlier failure is blocked."""
    chosen = None if only is None else set(only)
    rows: list[Row] = []
    for check in CHECKS:
        if (chosen is not None and check.name not in chosen) or check.inapplicable(evidence):
            continue
        found = check.run(evidence)
        if not found:
            subject = evidence.subject(check.name)
            found = [subject.row("comparisons", "", 0.0, None, False, "nothing compared")]
        rows += found
    return explained(rows, {check.name: check.follows for check in CHECKS})
