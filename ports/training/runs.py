"""One training run of a port, from a built objective to its checkpoints, and the command around it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from torch import nn
from torch.utils.data import Sampler

from ports.commands import exit_code, unread
from ports.files import check_output
from ports.numerics import fix_numerics
from ports.training.checkpoint import DirectoryLock, sweep
from ports.training.data.batches import RecordDataset, build_loader
from ports.training.data.grouping import LengthGroupedSampler, record_sizes
from ports.training.data.held_out import hold_out
from ports.training.data.record_info import GENERATION
from ports.training.effect import refuse_idle
from ports.training.keeper import CheckpointKeeper
from ports.training.launch import LOG, build_accelerator
from ports.training.loop import Clip, Loop, Plan
from ports.training.objective import TTTObjective
from ports.training.observer import Observer
from ports.training.resume import Checkpoint, choose, log_to_keep, remove_run, resume
from ports.training.settings import TrainingSettings, parse
from ports.training.stop import EXIT_CODE, StoppedError
from ports.training.validation import Measure, Validation
from ports.training.verifier import tokenizer_files, verifier_config

S = TypeVar("S", bound=TrainingSettings)


def start_training(
    settings: TrainingSettings,
    objective: TTTObjective,
    dataset: RecordDataset,
    clip: Clip,
    checkpoint: str,
    sampler: Sampler[int] | Iterable[int] | None = None,
    observer: Observer | None = None,
    measure: Measure | None = None,
) -> Loop:
    """A run of ``objective`` on ``dataset``, ready to go, that saves ``objective.draft`` after every pass.

    Args:
        settings: the run's settings.
        objective: see :class:`ports.training.loop.Plan`.
        dataset: the samples of one pass, and those that are held out of it.
        clip: how gradients are clipped.
        checkpoint: checkpoints are named ``cpdir/<checkpoint><pass>``, from 0.
        sampler: takes the place of shuffling and of grouping.
        observer: looks on.
        measure: decodes ``--val_prompts`` after each pass.

    Raises:
        InputError: a run that would train nothing, before anything is written; a tracker or launch that is refused; a
            checkpoint that does not fit.
    """
    trained, held = hold_out(dataset, settings, objective.draft)
    if sampler is None and settings.group_by_length:
        sampler = LengthGroupedSampler(record_sizes(trained.files), settings.bs, settings.seed)
    loader = build_loader(
        trained,
        settings.bs,
        settings.shuffle,
        0 if settings.online else settings.num_workers,  # the verifier lives in this process
        sampler,
        settings.packing,
        settings.prefetch_factor,
    )
    check_output(settings.cpdir, "cpdir", checkpoint_bytes(objective.draft))
    keeper = CheckpointKeeper(settings, checkpoint, files_beside(settings))
    warn_of_longer(settings)
    validation = None if held is None and measure is None else Validation(settings, held, measure)
    plan = Plan(settings, objective, loader, len(trained), clip, keeper, validation)
    start = Start(settings)

    def prepare(accelerator: Accelerator) -> bytes:
        refuse_idle(settings, plan.num_files, len(loader), accelerator.num_processes)
        return start.prepare(accelerator)

    loop = Loop(plan, build_accelerator(settings, prepare), observer or Observer())
    if validation is not None:
        validation.check(loop)
    if start.checkpoint is not None:
        resume(loop, start.checkpoint, keeper)
    if settings.overwrite and loop.accelerator.is_main_process:
        remove_run(settings.cpdir, checkpoint)
    return loop


def warn_of_longer(settings: TrainingSettings) -> None:
    """Features of positions that the verifier was not made for are of little worth; the default is the prototypes'."""
    positions = getattr(verifier_config(settings.basepath), "max_position_embeddings", None)
    if "max_len" in settings.model_fields_set and positions is not None and settings.max_len > positions:
        warnings.warn(f"--max_len {settings.max_len}: the verifier has {positions} positions", stacklevel=2)


def files_beside(settings: TrainingSettings) -> list[Path]:
    """What a draft's directory holds beside the draft: the verifier's tokenizer, and how the records were made."""
    made_from = settings.tmpdir / GENERATION
    return [*tokenizer_files(settings.basepath), *([made_from] if made_from.is_file() else [])]


class Start:
    """Takes hold of the checkpoint directory, clears away what a killed run left, and chooses where to go on from."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings
        self.checkpoint: Checkpoint | None = None

    def prepare(self, accelerator: Accelerator) -> bytes:
        """Returns what the metrics file begins with; the accelerator keeps the lock for as long as it lives."""
        if accelerator.is_main_process:
            accelerator.directory_lock = DirectoryLock(self.settings.cpdir)
            for directory in sweep(self.settings.cpdir):
                accelerator.print(f"brought back {directory}, whose replacement was never finished")
        accelerator.wait_for_everyone()
        self.checkpoint = choose(self.settings, accelerator.print)
        if not accelerator.is_main_process:
            return b""
        return log_to_keep(LOG, self.checkpoint, self.settings.resume_anyway)


def checkpoint_bytes(draft: nn.Module) -> int:
    """What a checkpoint takes, about: weights and Adam's two moments of them, in float32."""
    return sum(12 * parameter.numel() for parameter in draft.parameters() if parameter.requires_grad)


def finish(loop: Loop) -> nn.Module:
    """Train to the end; returns the objective that holds the trained draft."""
    trained = loop.run()
    loop.accelerator.end_training()
    return trained


def run_command(settings_class: type[S], execute: Callable[[S], object], argv: Sequence[str] | None = None) -> int:
    """Parse a command line, seed, and execute; returns 75 when a signal stopped the run.

    For other exit codes see :func:`ports.commands.exit_code`. Output that nobody reads does not end a run.
    """
    return exit_code(lambda: _execute(settings_class, execute, sys.argv[1:] if argv is None else argv))


def _execute(settings_class: type[S], execute: Callable[[S], object], argv: Sequence[str]) -> int:
    settings = parse(settings_class, argv)
    check_output(settings.cpdir, "cpdir")
    fix_numerics(settings.seed)
    try:
        with unread():
            execute(settings)
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_CODE
    return 0
