"""One training run of a port, from a built objective to its checkpoints, and the command around it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import Sampler

from ports.errors import InputError
from ports.training.batches import RecordDataset, build_loader
from ports.training.command_line import parse
from ports.training.launch import build_accelerator
from ports.training.loop import Clip, Loop, Plan
from ports.training.observer import Observer
from ports.training.saving import save_draft
from ports.training.settings import TrainingSettings
from ports.training.verifier import tokenizer_files

S = TypeVar("S", bound=TrainingSettings)


def start_training(
    settings: TrainingSettings,
    objective: nn.Module,
    dataset: RecordDataset,
    clip: Clip,
    checkpoint: str,
    sampler: Sampler[int] | Iterable[int] | None = None,
    observer: Observer | None = None,
) -> Loop:
    """A run of ``objective`` on ``dataset``, ready to go, that saves ``objective.draft`` after every pass.

    Args:
        settings: the run's settings.
        objective: see :class:`ports.training.loop.Plan`.
        dataset: the samples of one pass.
        clip: how gradients are clipped.
        checkpoint: checkpoints are named ``cpdir/<checkpoint><pass>``, from 0.
        sampler: takes the place of shuffling.
        observer: looks on.
    """
    loader = build_loader(dataset, settings.bs, settings.shuffle, settings.num_workers, sampler)
    extra = tokenizer_files(settings.basepath)

    def after_pass(accelerator: Accelerator, objective: nn.Module, epoch: int) -> None:
        if accelerator.is_main_process:
            save_draft(objective.draft, settings.cpdir / f"{checkpoint}{epoch}", extra)
        accelerator.wait_for_everyone()

    plan = Plan(settings, objective, loader, len(dataset), clip, after_pass)
    return Loop(plan, build_accelerator(settings), observer or Observer())


def finish(loop: Loop) -> nn.Module:
    """Train to the end; returns the objective that holds the trained draft."""
    trained = loop.run()
    loop.accelerator.end_training()
    return trained


def run_command(settings_class: type[S], execute: Callable[[S], object], argv: Sequence[str] | None = None) -> int:
    """Parse a command line, seed, and execute; prints bad input to stderr and returns 2 for it."""
    try:
        settings = parse(settings_class, sys.argv[1:] if argv is None else argv)
        set_seed(settings.seed)
        execute(settings)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
