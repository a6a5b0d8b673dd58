"""Play a recorded run's sample order and noise again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Sampler

from parity.errors import InputError
from parity.files import read_tensors
from parity.prototypes.case import Case


class ReplaySampler(Sampler[int]):
    """Yields the recorded sample indices, one pass's worth at every iteration.

    A pass ends where the recorded one did: whole batches only.
    """

    def __init__(self, order: Sequence[int], per_pass: int) -> None:
        self.order, self.per_pass, self.position = list(order), per_pass, 0

    def __len__(self) -> int:
        return self.per_pass

    def __iter__(self) -> Iterator[int]:
        part = self.order[self.position : self.position + self.per_pass]
        self.position += len(part)
        return iter(part)


class ReplayDraw:
    """Hands out the recorded uniforms in loading order, in place of ``torch.rand_like``."""

    def __init__(self, file: Path) -> None:
        self.file = file
        stored = read_tensors(file)
        self.uniforms = [stored[name] for name in sorted(stored)]
        self.position = 0

    def __call__(self, features: Tensor) -> Tensor:
        if self.position >= len(self.uniforms):
            raise InputError(self.file, "noise", f"{len(self.uniforms)} draws", "one more")
        uniforms = self.uniforms[self.position]
        self.position += 1
        if uniforms.shape != features.shape:
            field = f"draw {self.position - 1}"
            raise InputError(self.file, field, f"shape {tuple(uniforms.shape)}", f"shape {tuple(features.shape)}")
        return uniforms


def samples_per_pass(case: Case) -> int:
    """How many samples a pass visits: incomplete batches are dropped."""
    return len(case.meta.samples_files) // case.bs * case.bs
