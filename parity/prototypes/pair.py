"""What the pairs of both prototypes have in common."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from parity import fixtures
from parity.checks import check_configuration
from parity.compare import View, compare_groups
from parity.evidence import Check, Evidence
from parity.files import read_tensors
from parity.locate import Finding
from parity.pair import Pair
from parity.prototypes.case import find_cases
from parity.prototypes.checks.resume import check_resume
from parity.prototypes.checks.round_trip import check_round_trip
from parity.prototypes.deviations import LEDGER
from parity.prototypes.localise import localise, sentence, trace_calls
from parity.prototypes.original import record_original, request_for, verify
from parity.prototypes.reference.loop import float64_oracle
from parity.prototypes.sides import Adapter, LiveOriginal, Port, Recorded, Reference
from parity.prototypes.signatures import hint_for
from parity.prototypes.speed import throughput
from parity.prototypes.spread import judge_spread, measure_spread
from parity.trace import Trace
from parity.verdict import Against, Report, Row

CHECKOUT = (
    "git clone https://github.com/vllm-project/speculators && git -C speculators checkout 227b8a1b, "
    "then --original speculators"
)
LOCALISED = ("forward", "loss", "paths", "gradients")
BY_POSITION = ("mb*.target_p", "mb*.step*.hidden_in", "mb*.step*.hidden", "mb*.step*.logits")
TABLES = {"fp32": "prototype_fp32", "bf16": "prototype_bf16", "bf16ds": "prototype_bf16"}


def prototype_pair(name: str, own: tuple[Check, ...] = ()) -> Pair:
    """The pair of an algorithm: its recordings against the reference and the port."""
    return Pair(
        name=name,
        original=Recorded(),
        port=Port(),
        cases=lambda recordings: find_cases(recordings or fixtures.RECORDINGS, name),
        views=tuple(View(each, rows=real_positions) for each in BY_POSITION),
        deviations=LEDGER,
        tables=TABLES,
        checks=(*CHECKS, *own),
        not_applicable={each: partial(of_the_reference, said) for each, said in OF_THE_REFERENCE.items()},
        sides=(Reference(),),
        live=lambda root: live_pair(name, own, root),
        remedy=CHECKOUT,
        verify=lambda root: [f"{one.file}: found {one.found}, expected {one.expected}" for one in verify(root, name)],
        oracle=float64_oracle,
        hint=hint,
        jobs={f"{name}_throughput": partial(timed, name)},
        record=lambda case, root, output: record_original(request_for(case, root, output)),
        extend=trace_calls,
        baseline="prototype",
    )


def live_pair(name: str, own: tuple[Check, ...], root: Path) -> Pair:
    """The live original instead of the recordings, and its script on the adapter."""
    sides = Reference(), Adapter(root)
    return replace(prototype_pair(name, own), original=LiveOriginal(root), port=Port(afresh=True), sides=sides)


def timed(name: str, options: Any) -> Report:
    """Throughput of the port, by the options of a run."""
    return throughput(name, options.original, options.baseline, options.save_baseline)


def real_positions(trace: Trace, name: str) -> Tensor | None:
    """bool [B, T]: a micro-batch's positions that are not padding."""
    mask = trace.tensors.get(f"{name.partition('.')[0]}.batch.attention_mask")
    return None if mask is None else mask.bool()


def configuration(evidence: Evidence) -> list[Row]:
    """What both sides say they run with, and the draft's vocabulary map."""
    rows = check_configuration(evidence)
    if evidence.live is None or getattr(evidence.live.draft, "d2t", None) is None:
        return rows
    stored = read_tensors(evidence.case.initial)
    expected: dict[str, Tensor] = {name: stored[name] for name in ("t2d", "d2t") if name in stored}
    found: dict[str, Tensor] = {name: getattr(evidence.live.draft, name) for name in expected}
    subject, exact = evidence.subject("configuration"), evidence.tolerance("vocabulary")
    return rows + compare_groups(subject, "vocabulary", expected, found, exact)


def equivalence(evidence: Evidence) -> list[Row]:
    """Final losses over seeds, against the reference in the case's precision."""
    return [judge_spread(evidence.case, measure_spread(evidence.case))]


def hint(row: Row, evidence: Evidence) -> str:
    """The deviation that a failed row looks like, and where the port parts from the reference."""
    place = ""
    if evidence.live is not None and row.check in LOCALISED:
        finding: Finding | None = localise(evidence.case)
        place = sentence(finding) if finding else "module by module both sides agree on the first batch"
    return "; ".join(filter(None, (hint_for(row, evidence), place)))


def port_only(evidence: Evidence) -> str | None:
    """Only a port saves checkpoints and has options."""
    return None if evidence.live is not None else "only a port saves checkpoints and has options"


def port_in_fp32(evidence: Evidence) -> str | None:
    """Only a port, in the precision that numbers are compared in."""
    return port_only(evidence) or ("half precision: compared in float32" if evidence.in_half else None)


def port_in_half(evidence: Evidence) -> str | None:
    """Only a port, where numbers cannot be compared directly."""
    return port_only(evidence) or in_single(evidence)


def in_single(evidence: Evidence) -> str | None:
    """For what is asked in half precision alone."""
    return None if evidence.in_half else "float32: compared directly"


OF_THE_REFERENCE = {
    "configuration": "the reference is told what the recording says",
    "weights": "the reference starts from the recording's own file",
    "paths": "the reference in float64 is what others are held against",
}


def of_the_reference(said: str, evidence: Evidence) -> str | None:
    """What would hold the reference against itself."""
    return said if evidence.found.run == "reference" else None


CHECKS = (
    Check("configuration", configuration),
    Check("round_trip", check_round_trip, (), port_only, Against.ITSELF),
    Check("resume", check_resume, ("round_trip",), port_only, Against.ITSELF),
    Check("equivalence", equivalence, (), port_in_half, Against.REFERENCE),
)
