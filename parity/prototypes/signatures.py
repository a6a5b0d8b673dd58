"""Hints: a failure that looks like a known deviation says so."""

from __future__ import annotations

import torch

from parity.evidence import Evidence
from parity.prototypes.reference.setup import prepare
from parity.verdict import Row


def hint_for(row: Row, evidence: Evidence) -> str:
    """The deviation whose signature a failed row has, in words; empty when none fits."""
    if row.check == "batches" and _mask_is_shifted(evidence):
        return "unshifted-mask: the loss mask is the prototype's moved by one position"
    if row.check == "forward" and _chain_keys(evidence):
        return "own-position-kv: these are the logits of the chain alignment"
    if row.check == "gradients" and _last_micro_batch_only(evidence):
        return "accumulation-wipe: this is the gradient of the last micro-batch alone"
    return ""


def _mask_is_shifted(evidence: Evidence) -> bool:
    expected, found = (trace.tensors.get("mb0.batch.loss_mask") for trace in (evidence.expected, evidence.found))
    if expected is None or found is None or expected.shape != found.shape or torch.equal(expected, found):
        return False
    return any(_matches_shifted(expected, found, by) for by in (1, -1))


def _matches_shifted(expected: torch.Tensor, found: torch.Tensor, by: int) -> bool:
    """Equal away from the rows' ends, where the last entry is switched off."""
    moved = torch.roll(expected, by, dims=1)
    differing = (moved != found).sum(dim=1)
    return bool((differing <= 1).all())


def _chain_keys(evidence: Evidence) -> bool:
    """Do the found logits of the last step equal the reference's with the keys of the chain?"""
    case = evidence.case
    found = evidence.found.tensors.get(f"mb0.step{case.ttt_steps - 1}.logits")
    batch, setup = evidence.expected.group("mb0.batch."), prepare(case)
    if found is None or case.ttt_steps < 3 or not batch:
        return False
    with torch.no_grad():
        out = setup.forward(setup.weights(), batch, own_position=False)
    logits = out.steps[-1].logits
    where = evidence.real(0)
    if logits.shape != found.shape or where.shape != found.shape[:2]:
        return False
    return bool((logits[where] - found[where]).abs().max() < 1e-3)


def _last_micro_batch_only(evidence: Evidence) -> bool:
    """Is the accumulated gradient the prototype's own, which keeps only the last micro-batch?"""
    if evidence.case.accumulation == 1:
        return False
    last = evidence.micro_batches()[-1]
    expected, found = (trace.group(f"mb{last}.grad.") for trace in (evidence.expected, evidence.found))
    return bool(expected) and all(
        name in found and torch.allclose(value, found[name], rtol=1e-3, atol=1e-6) for name, value in expected.items()
    )
