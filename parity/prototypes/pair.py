"""The two pairs: Eagle3 and HASS of vllm-project/speculators' research folder against the ports."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from parity import fixtures
from parity.case import STEPS
from parity.checks import CHECKS as OF_ANY_PAIR
from parity.checks import Need, check_configuration, check_environment, check_optimizer_step, needs
from parity.compare import compare_groups, compare_value
from parity.files import read_tensors
from parity.pair import Pair
from parity.plants import Ground
from parity.prototypes.case import RecordedCase, find_cases, read_case
from parity.prototypes.checkpoints import check_converted, check_resume, check_round_trip, steps_of
from parity.prototypes.deviations import DEVIATIONS
from parity.prototypes.faults import OF_BOTH, OF_EAGLE3, OF_HASS, UNSEEN
from parity.prototypes.hints import hint, trace_calls
from parity.prototypes.library import check_chain, initial
from parity.prototypes.original.checkout import verify
from parity.prototypes.original.child import record_original
from parity.prototypes.port import ALGORITHMS, planted_in_port, run_port
from parity.prototypes.recorded import PROTOTYPE_SEED, load_recorded, observed_settings
from parity.prototypes.reference.loop import trace_reference
from parity.prototypes.speed import throughput
from parity.prototypes.spread import VIEWS, margin_of, more_of, with_spread, write_spread
from parity.side import Run
from parity.tolerances import EXACT
from parity.trace_pair import Check, TracePair
from parity.verdict import Against, Row
from ports.training.stop import StoppedError

REMEDY = (
    "git clone https://github.com/vllm-project/speculators && git -C speculators checkout 227b8a1b, "
    "then --original speculators"
)


def environment(evidence: TracePair) -> list[Row]:
    """As of any side, and that looking on changes no bit of the port's first loss."""
    rows = check_environment(evidence)
    if evidence.left is None or evidence.left.unobserved is None:
        return rows
    losses = evidence.left.unobserved(), evidence.found.curve[0].loss
    return [*rows, compare_value(evidence.subject("environment"), "observed", f"loss of {evidence.found.run}", *losses)]


def configuration(evidence: TracePair) -> list[Row]:
    """What both sides say they run with, what they then did, and the draft's vocabulary map."""
    sides = [replace(side, configuration={**side.configuration, **observed_settings(side)}) for side in evidence.traces]
    rows = check_configuration(replace(evidence, expected=sides[0], found=sides[1]))
    if evidence.left is None or getattr(evidence.left.draft, "d2t", None) is None:
        return rows
    stored = read_tensors(evidence.case.initial)
    expected: dict[str, Tensor] = {name: stored[name] for name in ("t2d", "d2t") if name in stored}
    found: dict[str, Tensor] = {name: getattr(evidence.left.draft, name) for name in expected}
    return rows + compare_groups(evidence.subject("configuration"), "vocabulary", expected, found, EXACT)


def optimizer_step(evidence: TracePair) -> list[Row]:
    """Every step computed again; the state after the first beside the prototype's, unless that lost its gradients."""
    expected = evidence.expected.without(("after",)) if wiped(evidence) else evidence.expected
    return check_optimizer_step(replace(evidence, expected=expected))


def wiped(evidence: TracePair) -> str | None:
    """Why nothing that comes of accumulated gradients is compared with a port, which alone keeps them."""
    return WIPE if evidence.left is not None and evidence.case.accumulation > 1 else None


def not_for_the_reference(said: str) -> Callable[[TracePair], str | None]:
    """Why a check would hold the reference against itself."""
    return lambda evidence: said if evidence.found.run == "reference" else None


PORT: Need = (lambda e: e.left is not None, "only a port saves checkpoints and has options")
IN_FP32: Need = (lambda e: e.case.dtype == "fp32", "half precision: compared in float32")
SEVERAL: Need = (lambda e: steps_of(e.case)[1] > 1, "one optimizer step: there is none to stop before")
FINAL: Need = (lambda e: e.expected.group("final."), "the recording kept no final parameters")

WIPE = "accumulation-wipe: the prototype loses accumulated gradients, the port does not; the reference stands in"
MOVED = "the first steps of a recording in half precision do not show which parameters it trains"
NOT_APPLICABLE = {
    **dict.fromkeys(("gradients", "curve", "hits", "converted"), wiped),
    "configuration": not_for_the_reference("the reference is told what the recording says"),
    "weights": not_for_the_reference("the reference starts from the recording's own file"),
    "cross_step_grad": not_for_the_reference("the reference is what others are held against"),
}
CHECKS = (
    *(replace(check, run=environment) for check in OF_ANY_PAIR if check.name == "environment"),
    Check("configuration", configuration),
    *(replace(check, run=optimizer_step) for check in OF_ANY_PAIR if check.name == "optimizer_step"),
    Check("round_trip", check_round_trip, (), needs(PORT), Against.SELF_CONSISTENCY),
    Check("resume", check_resume, ("round_trip",), needs(PORT, SEVERAL), Against.SELF_CONSISTENCY),
)
EAGLE3_CHECKS = (
    Check("chain", check_chain, ("loss", "cross_step_grad", "gradients"), needs(PORT, IN_FP32), Against.SPECULATORS),
    Check("converted", check_converted, ("curve", "round_trip"), needs(FINAL, PORT, IN_FP32), Against.SPECULATORS),
)


BATCH = {"ids": "input_ids", "mask": "loss_mask", "features": "features", "target": "target"}
"""What of a port's batch is one position's, by its key."""

HANDED = ("noise", "shuffle", "bs", "accumulation", "epoch", "ttt_steps", "ttt_alignment")
"""Entries of its configuration that the port was told, and what the run did says once more."""

OF_THE_ADAPTER = ("batches", "targets", "forward", "loss", "gradients", "optimizer_step", "curve")


@dataclass(frozen=True)
class FunctionSide:
    """A side that is a function of a case and of a folder, which is there for as long as the run is looked at.

    ``leaves_out`` says why it does not run a case. ``checks`` are those that it is held to; None: all.
    ``handed`` are entries of its configuration that the harness tells it, or that its run says otherwise.
    """

    name: str
    run: Callable[[RecordedCase, Path], Run]
    leaves_out: Callable[[RecordedCase], str | None] = lambda case: None
    checks: tuple[str, ...] | None = None
    handed: Collection[str] = ()

    @contextmanager
    def trace(self, case: RecordedCase) -> Iterator[Run]:
        """Runs it."""
        with tempfile.TemporaryDirectory() as folder:
            yield self.run(case, Path(folder))

    def planted(self, ground: Ground) -> FunctionSide:
        """With a fault in the draft that the port's loop trains and in the batches it draws."""

        def run(case: RecordedCase, folder: Path) -> Run:
            with planted_in_port(ground):
                ran = self.run(case, folder)
            return replace(ran, left=replace(ran.left, unobserved=None))  # without the fault it is another loss

        return replace(self, run=run)


def in_fp32(reason: str) -> Callable[[RecordedCase], str | None]:
    """Why a side runs in float32 alone."""
    return lambda case: None if case.dtype == "fp32" else f"half precision: {reason}"


def without_deepspeed(case: RecordedCase) -> str | None:
    """Cases under DeepSpeed need it."""
    missing = case.dtype == "bf16ds" and find_spec("deepspeed") is None
    return "DeepSpeed is not installed: pip install -e '.[deepspeed]'" if missing else None


def _port(case: RecordedCase, folder: Path, afresh: bool, steps: int | None = None) -> Run:
    """The port's own loop; its checkpoints are kept for the checks."""
    try:
        margin = margin_of(case)
        ran = run_port(case, folder, case.seed or PROTOTYPE_SEED, afresh, margin, max_steps=steps)
    except StoppedError as stopped:  # by a signal, which is meant for the whole process
        raise KeyboardInterrupt from stopped
    if steps is not None:  # what is printed at the end of a pass is then of fewer batches
        ran.trace.prints = ran.trace.prints[:1]
    return Run(ran.trace, left=ran)


def port(afresh: bool = False, steps: int | None = None) -> FunctionSide:
    """The port, or its first steps; ``afresh`` draws order and noise from the case's seed instead of replaying them."""
    return FunctionSide("port", partial(_port, afresh=afresh, steps=steps), handed=HANDED)


def live_original(root: Path) -> FunctionSide:
    """The unmodified script, now, in a process of its own; the case is then as that run drew it."""

    def run(case: RecordedCase, folder: Path) -> Run:
        fresh = read_case(record_original(case, root, folder, link_fixture=True))
        return Run(with_spread(load_recorded(fresh, run="original"), fresh), case=fresh, more=more_of(fresh))

    return FunctionSide("original", run, without_deepspeed)


def adapter(root: Path) -> FunctionSide:
    """The unmodified script with its model import redirected to the port's adapter."""

    def run(case: RecordedCase, folder: Path) -> Run:
        redirect = ALGORITHMS[case.algorithm].adapter
        recording = record_original(case, root, folder, redirect=redirect, link_fixture=True)
        return Run(load_recorded(read_case(recording), run="adapter"))

    fitting = in_fp32("the adapter is held against the original in float32")
    return FunctionSide("adapter", run, fitting, OF_THE_ADAPTER)


RECORDED = FunctionSide(
    "recorded", lambda case, folder: Run(with_spread(load_recorded(case), case), more=more_of(case))
)
"""What a prototype computed once, from disk."""


def _recorded_steps(case: RecordedCase, folder: Path, steps: int) -> Run:
    whole = with_spread(load_recorded(case), case).without(("final",))
    return Run(replace(whole, curve=whole.curve[:steps], prints=whole.prints[:1], left_out=()))


def few_steps(pair: Pair, steps: int = STEPS) -> Pair:
    """The port's first optimizer steps against as much of the recordings; of the cases with three TTT steps."""
    cases = [case for case in pair.find_cases(None) if case.name.endswith("_k3")]
    recorded = FunctionSide("recorded", partial(_recorded_steps, steps=steps))
    flow = {"gradient_flow": lambda e: MOVED if e.case.dtype != "fp32" else None}
    not_applicable = {**pair.not_applicable, **flow}
    return replace(pair, cases=cases, original=recorded, port=port(steps=steps), not_applicable=not_applicable)


REFERENCE = FunctionSide("reference", lambda case, folder: Run(trace_reference(case, margin=margin_of(case))))
"""The formulas written again, in the case's own precision; also what others are held to where a recording is silent."""


def record(case: RecordedCase, root: Path, output: Path) -> Path:
    """The unmodified script's recording, with what one rounding does to it."""
    folder = record_original(case, root, output)
    write_spread(read_case(folder))
    return folder


def prototype_pair(name: str) -> Pair:
    """The pair of an algorithm: its recordings against the reference and the port."""
    return Pair(
        name=name,
        original=RECORDED,
        port=port(),
        cases=lambda recordings: find_cases(recordings or fixtures.RECORDINGS, name),
        views=VIEWS,
        deviations=DEVIATIONS,
        checks=(*CHECKS, *(EAGLE3_CHECKS if name == "eagle3" else ())),
        not_applicable=NOT_APPLICABLE,
        sides=(REFERENCE,),
        live=partial(live_pair, name),
        remedy=REMEDY,
        verify=lambda root: verify(root, name),
        reference=partial(trace_reference, optimizer_steps=1),
        hint=hint,
        jobs={f"{name}_throughput": partial(throughput, name), **({"hass_initial": initial} if name == "hass" else {})},
        record=record,
        extend=trace_calls,
        baseline="prototype",
        batch_keys=BATCH,
        faults=(*OF_BOTH, *(OF_EAGLE3 if name == "eagle3" else OF_HASS)),
        unseen=UNSEEN,
        short=few_steps,
    )


def live_pair(name: str, root: Path) -> Pair:
    """The live original instead of the recordings, and its script on the adapter."""
    sides = REFERENCE, adapter(root)
    return replace(prototype_pair(name), original=live_original(root), port=port(afresh=True), sides=sides)


EAGLE3, HASS = prototype_pair("eagle3"), prototype_pair("hass")
