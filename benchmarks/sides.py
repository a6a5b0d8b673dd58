"""Who runs a step: the reference, the port's readable and fast paths, Speculators' own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from speculators.models.eagle3 import Eagle3DraftModel
from torch import nn

from benchmarks.shapes import Shape
from parity.prototypes.case import RecordedCase
from parity.prototypes.port import start_port
from parity.prototypes.reference.loop import ReferenceRun, prepare
from ports.check.trained import speculators_inputs
from ports.eagle3.model import thaw_head
from ports.eagle3.train import GRAD_CLIP
from ports.training.observer import Observer, StepRecord
from ports.training.optimizer import build_optimizer

Steps = Iterator[float]
"""The loss of the first micro-batch of every optimizer step."""


def reference(case: RecordedCase, shape: Shape, cpdir: Path) -> Steps:
    """The same formulas written for reading; what the prototype does, but for its activation checkpointing."""
    run = ReferenceRun(prepare(case), observed=False)
    for _ in run.optimizer_steps():
        yield run.trace.curve[-1].loss


def port(case: RecordedCase, shape: Shape, cpdir: Path, **changes: Any) -> Steps:
    """The port as it comes; ``changes`` are settings."""
    losses = _Losses()
    precision = "bf16" if shape.dtype == "bf16" else "no"
    loop = start_port(case, cpdir, observer=losses, mixed_precision=precision, max_len=shape.length, **changes)
    for _ in loop.optimizer_steps():
        yield losses.last


def speculators(case: RecordedCase, shape: Shape, cpdir: Path) -> Steps:
    """Speculators' own forward with sdpa, its eager KL divergence (the fused one wants Triton), the same optimizer."""
    loop = start_port(case, cpdir, ttt_alignment="chain")
    draft = _theirs(loop.objective.draft)
    optimizer = build_optimizer(draft, case.lr)
    for batch in loop.loader:
        batch = send_to_device(batch, shape.device)
        with torch.autocast(shape.device, torch.bfloat16, enabled=shape.dtype == "bf16"):
            _, loss, _ = draft(**speculators_inputs(batch, shape.ttt_steps))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(draft.parameters(), GRAD_CLIP)
        optimizer.step()
        yield float(loss.detach())


def _theirs(ours: Eagle3DraftModel) -> Eagle3DraftModel:
    """Speculators' attention on the same weights; the data hold post-norm targets, so its norm is an identity."""
    config = ours.config
    config.transformer_layer_config._attn_implementation = "sdpa"
    draft = Eagle3DraftModel(config)
    draft.load_state_dict(ours.state_dict(), strict=False)
    draft.verifier_norm = nn.Identity()
    return thaw_head(draft).to(next(ours.parameters()).device).train()


class _Losses(Observer):
    """Keeps the last loss."""

    last = float("nan")

    def stepped(self, record: StepRecord, objective: nn.Module) -> None:
        self.last = record.loss


SIDES: dict[str, Callable[[RecordedCase, Shape, Path], Steps]] = {
    "reference": reference,
    "speculators": speculators,
    "port eager": partial(port, attn_implementation="eager", loss_implementation="eager"),  # all scores, all logits
    "port chain": partial(port, ttt_alignment="chain"),  # as Speculators trains, so that the two losses compare
    "port": port,
}
