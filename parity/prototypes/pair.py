"""The two pairs: Eagle3 and HASS of vllm-project/speculators' research folder against the ports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from parity import fixtures
from parity.checks import check_configuration
from parity.compare import View, compare_groups
from parity.evidence import Check, Evidence
from parity.files import read_tensors
from parity.pair import Pair
from parity.prototypes.case import find_cases
from parity.prototypes.checkpoints import check_converted, check_resume, check_round_trip
from parity.prototypes.deviations import LEDGER
from parity.prototypes.hints import hint, trace_calls
from parity.prototypes.library import check_chain, check_initial
from parity.prototypes.original import record_original, request_for, verify
from parity.prototypes.reference.loop import float64_oracle
from parity.prototypes.sides import RECORDED, REFERENCE, adapter, live_original, port
from parity.prototypes.speed import throughput
from parity.prototypes.spread import check_equivalence
from parity.trace import Trace
from parity.verdict import Against, Row

CHECKOUT = (
    "git clone https://github.com/vllm-project/speculators && git -C speculators checkout 227b8a1b, "
    "then --original speculators"
)
BY_POSITION = ("mb*.target_p", "mb*.step*.hidden_in", "mb*.step*.hidden", "mb*.step*.logits")
TABLES = {"fp32": "prototype_fp32", "bf16": "prototype_bf16", "bf16ds": "prototype_bf16"}


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


def port_only(evidence: Evidence) -> str | None:
    """Only a port saves checkpoints and has options."""
    return None if evidence.live is not None else "only a port saves checkpoints and has options"


def port_in_fp32(evidence: Evidence) -> str | None:
    """Only a port, in the precision that numbers are compared in."""
    return port_only(evidence) or ("half precision: compared in float32" if evidence.in_half else None)


def port_in_half(evidence: Evidence) -> str | None:
    """Only a port, where numbers cannot be compared directly."""
    return port_only(evidence) or (None if evidence.in_half else "float32: compared directly")


def port_with_final(evidence: Evidence) -> str | None:
    """Only a port in float32, where the prototype's final weights are known."""
    known = evidence.expected.group("final.")
    return port_in_fp32(evidence) if known else "the recording kept no final parameters"


def not_for_the_reference(said: str) -> Callable[[Evidence], str | None]:
    """Why a check would hold the reference against itself."""
    return lambda evidence: said if evidence.found.run == "reference" else None


OF_THE_REFERENCE = {
    "configuration": not_for_the_reference("the reference is told what the recording says"),
    "weights": not_for_the_reference("the reference starts from the recording's own file"),
    "paths": not_for_the_reference("the reference in float64 is what others are held against"),
}
CHECKS = (
    Check("configuration", configuration),
    Check("round_trip", check_round_trip, (), port_only, Against.ITSELF),
    Check("resume", check_resume, ("round_trip",), port_only, Against.ITSELF),
    Check("equivalence", check_equivalence, (), port_in_half, Against.REFERENCE),
)
OWN_CHECKS = {
    "eagle3": (
        Check("chain", check_chain, ("loss", "paths", "gradients"), port_in_fp32, Against.LIBRARY),
        Check("converted", check_converted, ("curve", "round_trip"), port_with_final, Against.LIBRARY),
    ),
    "hass": (Check("initial", check_initial, (), port_in_fp32, Against.LIBRARY, once=True),),
}


def prototype_pair(name: str) -> Pair:
    """The pair of an algorithm: its recordings against the reference and the port."""
    return Pair(
        name=name,
        original=RECORDED,
        port=port(),
        cases=lambda recordings: find_cases(recordings or fixtures.RECORDINGS, name),
        views=tuple(View(each, rows=real_positions) for each in BY_POSITION),
        deviations=LEDGER,
        tables=TABLES,
        checks=(*CHECKS, *OWN_CHECKS[name]),
        not_applicable=OF_THE_REFERENCE,
        sides=(REFERENCE,),
        live=partial(live_pair, name),
        remedy=CHECKOUT,
        verify=lambda root: verify(root, name),
        oracle=float64_oracle,
        hint=hint,
        jobs={f"{name}_throughput": partial(throughput, name)},
        record=lambda case, root, output: record_original(request_for(case, root, output)),
        extend=trace_calls,
        baseline="prototype",
    )


def live_pair(name: str, root: Path) -> Pair:
    """The live original instead of the recordings, and its script on the adapter."""
    sides = REFERENCE, adapter(root)
    return replace(prototype_pair(name), original=live_original(root), port=port(afresh=True), sides=sides)


EAGLE3, HASS = prototype_pair("eagle3"), prototype_pair("hass")
