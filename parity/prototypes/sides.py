"""What can run a case of a prototype: recording, live original, reference, port, the original's script on the port."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from parity.prototypes.case import Case, read_case
from parity.prototypes.original import record_original, request_for
from parity.prototypes.port import ALGORITHMS, run_port
from parity.prototypes.recorded import PROTOTYPE_SEED, load_recorded
from parity.prototypes.reference.loop import trace_reference
from parity.side import Run
from ports.training.stop import StoppedError

OF_THE_ADAPTER = ("batches", "targets", "forward", "loss", "gradients", "optimizer_step", "curve")
WIPE = "accumulation-wipe: the prototype loses accumulated gradients, the port does not; the reference stands in"


@dataclass(frozen=True)
class Runs:
    """A side that is a function of a case and of a folder, which is there for as long as the run is looked at.

    ``leaves_out`` says why it does not run a case. ``checks`` are those that it is held to; None: all.
    """

    name: str
    run: Callable[[Case, Path], Run]
    leaves_out: Callable[[Case], str | None] = lambda case: None
    checks: tuple[str, ...] | None = None

    @contextmanager
    def trace(self, case: Case) -> Iterator[Run]:
        """Runs it."""
        with tempfile.TemporaryDirectory() as folder:
            yield self.run(case, Path(folder))


def in_fp32(reason: str) -> Callable[[Case], str | None]:
    """Why a side runs in float32 alone."""
    return lambda case: None if case.dtype == "fp32" else f"half precision: {reason}"


def without_deepspeed(case: Case) -> str | None:
    """Cases under DeepSpeed need it."""
    missing = case.dtype == "bf16ds" and find_spec("deepspeed") is None
    return "DeepSpeed is not installed: pip install -e '.[deepspeed]'" if missing else None


def _port(case: Case, folder: Path, afresh: bool) -> Run:
    """The port's own loop; its checkpoints are kept for the checks."""
    try:
        ran = run_port(case, folder, seed=case.seed or PROTOTYPE_SEED, live=afresh)
    except StoppedError as stopped:  # by a signal, which is meant for the whole process
        raise KeyboardInterrupt from stopped
    return Run(ran.trace, ran)


def port(afresh: bool = False) -> Runs:
    """The port; ``afresh`` draws order and noise anew from the case's seed instead of replaying them."""
    wiped = (lambda case: None) if afresh else (lambda case: WIPE if case.accumulation > 1 else None)
    return Runs("port", partial(_port, afresh=afresh), wiped)


def live_original(root: Path) -> Runs:
    """The unmodified script, now, in a process of its own; the case is then as that run drew it."""

    def run(case: Case, folder: Path) -> Run:
        fresh = read_case(record_original(request_for(case, root, folder)))
        return Run(load_recorded(fresh, run="original"), case=fresh)

    return Runs("original", run, without_deepspeed)


def adapter(root: Path) -> Runs:
    """The unmodified script with its model import redirected to the port's adapter."""

    def run(case: Case, folder: Path) -> Run:
        request = request_for(case, root, folder, redirect=ALGORITHMS[case.algorithm].adapter)
        return Run(load_recorded(read_case(record_original(request)), run="adapter"))

    fitting = in_fp32("the adapter is held against the original in float32")
    return Runs("adapter", run, fitting, OF_THE_ADAPTER)


RECORDED = Runs("recorded", lambda case, folder: Run(load_recorded(case)))
"""What a prototype computed once, from disk."""

REFERENCE = Runs(
    "reference",
    lambda case, folder: Run(trace_reference(case)),
    in_fp32("the float64 reference is the oracle"),
)
"""The formulas written again, in float32; in half precision it is what others are judged by."""
