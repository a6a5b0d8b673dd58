"""The run of the live original that a case describes."""

from __future__ import annotations

from pathlib import Path

from parity.prototypes.case import Case
from parity.prototypes.original import OriginalRequest
from parity.prototypes.recorded import PROTOTYPE_SEED


def request_for(case: Case, prototype: Path, output: Path, **changes: object) -> OriginalRequest:
    """The original's run that the case describes; where it draws, it is seeded at the start of its loop."""
    request = OriginalRequest(
        prototype=prototype,
        fixture=case.fixture,
        output=output,
        case=case.name,
        algorithm=case.algorithm,
        dtype=case.dtype,
        lr=case.lr,
        bs=case.bs,
        gradient_accumulation_steps=case.accumulation,
        epoch=case.epoch,
        topk=case.topk,
        forward_num_total=case.ttt_steps,
        noise=case.noise,
        shuffle=case.shuffle,
        initial_weights=case.initial,
        seed=PROTOTYPE_SEED if case.noise or case.shuffle else None,
    )
    return OriginalRequest(**{**dict(request), **changes})
