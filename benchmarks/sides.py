"""Who runs a step: the reference, the port's readable and fast paths, Speculators' own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from speculators.models.eagle3 import Eagle3DraftModel
from torch import nn

from benchmarks.shapes import Shape
from parity.prototypes.case import Case
from parity.prototypes.library import speculators_inputs
from parity.prototypes.port import start_port
from parity.prototypes.reference.loop import Run, prepare
from ports.eagle3.model import thaw_head
from ports.eagle3.train import GRAD_CLIP
from ports.training.observer import Observer, StepRecord
from ports.training.optimizer import build_optimizer

Steps = Iterator[float]
"""The loss of the first micro-batch of every optimizer step."""


def reference(case: Case, shape: Shape, cpdir: Path) -> Steps:
    """The same formulas written for reading; what the prototype does, but for its activation checkpointing."""
    run = Run(prepare(case))
    for _ in run.optimizer_steps():
        yield run.trace.curve[-1].loss


def port(
    case: Case, shape: Shape, cpdir: Path, prepare: Callable[[Any], object] | None = None, **changes: Any
) -> Steps:
    """The port as it comes; ``prepare`` gets the draft before the first step, ``changes`` are settings."""
    losses = _Losses()
    changes |= {"mixed_precision": _precision(shape), "max_len": shape.length}
    loop = start_port(case, cpdir, observer=losses, **changes)
    if prepare is not None:
        prepare(loop.objective.draft)
    for _ in loop.optimizer_steps():
        yield losses.last


def port_eager(case: Case, shape: Shape, cpdir: Path) -> Steps:
    """Dense attention, all logits."""
    return port(case, shape, cpdir, attn_implementation="eager", loss_implementation="eager")


def port_compiled(case: Case, shape: Shape, cpdir: Path) -> Steps:
    """The MLPs through torch.compile, which the port does not do by itself: here is what it would give."""
    return port(case, shape, cpdir, prepare=lambda draft: [layer.mlp.compile(dynamic=True) for layer in draft.layers])


def port_chain(case: Case, shape: Shape, cpdir: Path) -> Steps:
    """In the alignment that Speculators trains in, so that the two losses compare."""
    return port(case, shape, cpdir, ttt_alignment="chain")


def speculators(case: Case, shape: Shape, cpdir: Path) -> Steps:
    """Speculators' own forward with sdpa, its eager KL divergence (the fused one wants Triton), the same optimizer."""
    loop = start_port(case, cpdir, ttt_alignment="chain")
    draft = _theirs(loop.objective.draft)
    optimizer = build_optimizer(draft, case.lr)
    for batch in loop.loader:
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


def _precision(shape: Shape) -> str:
    return "bf16" if shape.dtype == "bf16" else "no"


SIDES: dict[str, Callable[[Case, Shape, Path], Steps]] = {
    "reference": reference,
    "speculators": speculators,
    "port eager": port_eager,
    "port chain": port_chain,
    "port compiled": port_compiled,
    "port": port,
}
