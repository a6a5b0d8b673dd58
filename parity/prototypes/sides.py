"""What can run a case of a prototype: recording, live original, reference, port, the original's script on the port."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from parity.prototypes.case import Case, read_case
from parity.prototypes.original import record_original, request_for
from parity.prototypes.port import ALGORITHMS, run_port
from parity.prototypes.recorded import PROTOTYPE_SEED, load_recorded
from parity.prototypes.reference.loop import trace_reference
from parity.side import Run
from ports.training.stop import StoppedError

HALF = "half precision: the float64 reference is the oracle"


@dataclass(frozen=True)
class Recorded:
    """What a prototype computed once."""

    name: str = "recorded"

    @contextmanager
    def trace(self, case: Case) -> Iterator[Run]:
        """From disk."""
        yield Run(load_recorded(case))


@dataclass(frozen=True)
class LiveOriginal:
    """The unmodified script, now, in a process of its own; the case is then as that run drew it."""

    root: Path
    name: str = "original"

    @contextmanager
    def trace(self, case: Case) -> Iterator[Run]:
        """Runs it."""
        with tempfile.TemporaryDirectory() as folder:
            fresh = read_case(record_original(request_for(case, self.root, Path(folder))))
            yield Run(load_recorded(fresh, run="original"), case=fresh)

    def leaves_out(self, case: Case) -> str | None:
        """Cases under DeepSpeed need it."""
        missing = case.dtype == "bf16ds" and find_spec("deepspeed") is None
        return "DeepSpeed is not installed: pip install -e '.[deepspeed]'" if missing else None


@dataclass(frozen=True)
class Reference:
    """The formulas written again, in float32."""

    name: str = "reference"

    @contextmanager
    def trace(self, case: Case) -> Iterator[Run]:
        """Runs it."""
        yield Run(trace_reference(case, torch.float32))

    def leaves_out(self, case: Case) -> str | None:
        """In half precision it is what others are judged by."""
        return None if case.dtype == "fp32" else HALF


@dataclass(frozen=True)
class Port:
    """The port's own loop; ``afresh`` draws order and noise anew from the case's seed instead of replaying them."""

    afresh: bool = False
    name: str = "port"

    @contextmanager
    def trace(self, case: Case) -> Iterator[Run]:
        """Runs it, with its checkpoints kept for as long as the checks need them."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                ran = run_port(case, Path(folder), seed=case.seed or PROTOTYPE_SEED, live=self.afresh)
            except StoppedError as stopped:  # by a signal, which is meant for the whole process
                raise KeyboardInterrupt from stopped
            yield Run(ran.trace, ran)

    def leaves_out(self, case: Case) -> str | None:
        """The prototypes' accumulation loses gradients."""
        if self.afresh or case.accumulation == 1:
            return None
        return (
            "accumulation-wipe: the prototype loses accumulated gradients, the port does not; the reference stands in"
        )


@dataclass(frozen=True)
class Adapter:
    """The unmodified script with its model import redirected to the port's adapter."""

    root: Path
    name: str = "adapter"
    checks: tuple[str, ...] = ("batches", "targets", "forward", "loss", "gradients", "optimizer_step", "curve")

    @contextmanager
    def trace(self, case: Case) -> Iterator[Run]:
        """Runs it."""
        with tempfile.TemporaryDirectory() as folder:
            request = request_for(case, self.root, Path(folder), redirect=ALGORITHMS[case.algorithm].adapter)
            yield Run(load_recorded(read_case(record_original(request)), run="adapter"))

    def leaves_out(self, case: Case) -> str | None:
        """In float32 alone."""
        return None if case.dtype == "fp32" else "half precision: the adapter is held against the original in float32"
