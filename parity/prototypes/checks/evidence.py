"""What a check looks at, and the table row it fills."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from parity.compare import Subject
from parity.errors import InputError
from parity.prototypes.case import Case
from parity.tolerances import Tolerance, tables
from parity.trace import Trace
from parity.verdict import Row


@dataclass
class Evidence:
    """Two traces of one case, and what the checks beyond them need.

    ``oracle`` computes the float64 reference's first optimizer step when it is asked for; ``checkpoints`` is where the
    port saved its drafts and ``draft`` the one it ended with (None for runs that save none).
    """

    case: Case
    expected: Trace
    found: Trace
    oracle: Callable[[], Trace]
    checkpoints: Path | None = None
    draft: Any = None

    def subject(self, check: str) -> Subject:
        return Subject(check, self.case.name, self.found.run)

    def tolerance(self, quantity: str) -> Tolerance:
        return tables()["prototype_bf16" if self.is_bf16 else "prototype_fp32"][quantity]

    def real(self, micro_batch: int) -> Tensor:
        """bool [B, T]: the positions of a micro-batch that are not padding."""
        mask = self.expected.tensors.get(f"mb{micro_batch}.batch.attention_mask")
        return torch.zeros(0, dtype=torch.bool) if mask is None else mask.bool()

    def micro_batches(self) -> list[int]:
        """The micro-batches of the prototype's first optimizer step; at least one is asked for."""
        return self.expected.micro_batches() or [0]

    def trained_by_prototype(self) -> set[str]:
        """Parameters that the prototype's trace shows to be trained: they have a gradient, or they moved."""
        start = self.expected.group("init.")
        end = {**self.expected.group("after."), **self.expected.group("final.")}
        moved = {name for name in end if name in start and not torch.equal(start[name].to(end[name].dtype), end[name])}
        grads = self.expected.group(f"mb{self.micro_batches()[-1]}.grad.")
        return moved | {name for name, grad in grads.items() if bool(grad.any())}

    @property
    def is_bf16(self) -> bool:
        return self.case.dtype != "fp32"


def until_refused(subject: Subject, rows: Iterable[Row]) -> list[Row]:
    """All ``rows``; where making one ends in a refusal or a missing file, a failed row says so and is the last."""
    found: list[Row] = []
    try:
        found.extend(rows)
    except (InputError, OSError) as error:
        found.append(subject.row(subject.check, "refused", None, 0.0, False, str(error)))
    return found


@dataclass(frozen=True)
class Check:
    """A named comparison.

    ``follows`` names the checks whose failure explains a failure here. ``inapplicable`` says why the check has no
    subject in a piece of evidence, or returns None. What some checks find does not depend on the case: ``once`` says
    what one case is enough for, the ``algorithm`` or the whole ``run``.
    """

    name: str
    run: Callable[[Evidence], list[Row]]
    follows: tuple[str, ...] = ()
    inapplicable: Callable[[Evidence], str | None] = lambda evidence: None
    once: Literal["", "algorithm", "run"] = ""
