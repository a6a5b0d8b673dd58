"""A recorded case made over differs in nothing but the masks of its first batch."""

from __future__ import annotations

from pathlib import Path

import torch

from parity.prototypes.case import Case
from parity.prototypes.explain.cases import with_every_row_in_the_loss
from parity.prototypes.others.batch import first_samples


def test_every_row_is_in_the_loss(case: Case, tmp_path: Path) -> None:
    changed = with_every_row_in_the_loss(case, tmp_path)
    assert changed.tmpdir != case.tmpdir
    pairs = list(zip(first_samples(case), first_samples(changed), strict=True))
    assert len(pairs) == case.bs
    for before, after in pairs:
        assert bool(after.pop("loss_mask").all())
        assert not bool(before.pop("loss_mask").all())
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert changed.initial.read_bytes() == case.initial.read_bytes()
    assert changed.ttt_steps == case.ttt_steps
