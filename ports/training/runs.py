"""One training run of a port, from a built objective to its checkpoints, and the command around it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Sampler

from ports import flags
from ports.commands import unread
from ports.errors import InputError
from ports.files import check_output
from ports.numerics import fix_numerics
from ports.training.attention import attention_line
from ports.training.checkpoint import DirectoryLock, sweep
from ports.training.checkpoint_manager import FEATURE_LAYERS, CheckpointManager
from ports.training.data import Draw, LengthGroupedSampler, RecordDataset, build_loader, record_sizes
from ports.training.held import hold_records
from ports.training.launch import LOG, build_accelerator, start_trackers
from ports.training.loop import Clip, Loop, Plan
from ports.training.objective import TTTObjective
from ports.training.observer import Observer
from ports.training.online import PROTOTYPE_DTYPE, OnlineDataset, chosen_layers
from ports.training.prepared import PreparedDataset, is_prepared, prepared_files
from ports.training.records import GENERATION, check_origin, complete_records, list_records, recorded_info
from ports.training.resume import Checkpoint, check_named, choose, log_to_keep, remove_run, resume
from ports.training.saving import load_weights, size_of_checkpoint
from ports.training.settings import TrainingSettings
from ports.training.stop import EXIT_CODE, StoppedError, stop_with_launcher
from ports.training.validation import Measure, Validation, hold_out
from ports.training.warm import start_from
from ports.verifier.config import verifier_config
from ports.verifier.tokenizer import tokenizer_files

S = TypeVar("S", bound=TrainingSettings)


@dataclass(frozen=True)
class RecordSpec:
    """What an algorithm reads: ``layers`` are the draft config's; HASS has none."""

    algorithm: str
    hidden_size: int
    vocab_size: int
    layers: Sequence[int] | None = None

    @property
    def widths(self) -> dict[str, int]:
        """Of a record's floating fields."""
        if self.layers is None:
            return {"hidden_state": self.hidden_size}
        return {"hidden_state": len(self.layers) * self.hidden_size, "target": self.hidden_size}


def recorded_layers(settings: TrainingSettings) -> Sequence[int] | None:
    """Where the data have their features from, if they say so; Speculators' prepared data follow its own rule."""
    if settings.online or not settings.tmpdir.is_dir():
        return None
    if is_prepared(settings.tmpdir):
        count = verifier_config(settings.basepath).num_hidden_layers
        try:
            return chosen_layers("speculators", settings.basepath, count)
        except InputError as error:
            expected = "three different ones below it: speculator records takes others than Speculators' preparation"
            raise InputError(settings.basepath, "num_hidden_layers", f"{count}: {error.found}", expected) from error
    info = recorded_info(list_records(settings.tmpdir))
    return None if info is None else info.feature_layers or None


def build_source(settings: TrainingSettings, spec: RecordSpec, draw: Draw = torch.rand_like) -> RecordDataset:
    """The samples of one pass: records, Speculators' prepared data, or the verifier itself.

    Raises:
        InputError: no data below ``--data``, or data of another verifier or of other layers.
    """
    common: dict[str, Any] = {
        "widths": spec.widths,
        "vocab_size": spec.vocab_size,
        "max_len": settings.max_len,
        "alignment": settings.ttt_alignment,
        "noise": settings.noise,
        "draw": draw,
        "noise_seed": settings.seed if settings.noise_stream == "keyed" else None,
        "skip_bad": settings.on_bad_record == "skip",
    }
    directory, basepath, layers = settings.tmpdir, settings.basepath, spec.layers
    if is_prepared(directory):
        if settings.online:
            expected = "a directory of records; --online reads their ids alone"
            raise InputError(directory, "--online", "an arrow data set", expected)
        return PreparedDataset(prepared_files(directory), **common, directory=directory, basepath=basepath)
    files = complete_records(directory)
    if not settings.online:
        return RecordDataset(files, **common, like=check_origin(files, spec.algorithm, basepath, layers))
    own = PROTOTYPE_DTYPE[spec.algorithm] if settings.verifier_dtype == "default" else settings.verifier_dtype
    like = recorded_info(files)
    return OnlineDataset(files, **common, like=like, basepath=basepath, layers=layers, dtype=own)


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
    """A run of ``objective`` on ``dataset``, ready to go, that saves ``cpdir/<checkpoint><pass>`` after every pass.

    A ``sampler`` takes the place of shuffling and of grouping, ``measure`` decodes ``--val-prompts`` after each pass;
    for the others see :class:`ports.training.loop.Plan`.

    Raises:
        InputError: a run that would train nothing, or on records that are not the verifier's, before anything is
            written; a tracker or launch that is refused; a checkpoint that does not fit.
    """
    trained, held = hold_out(dataset, settings, objective.draft)
    begun = None if settings.from_checkpoint is None else start_from(objective.draft, settings.from_checkpoint)
    check_output(settings.cpdir, "out", size_of_checkpoint(objective.draft))
    checkpoint_manager = CheckpointManager(settings, checkpoint, files_beside(settings))
    warn_of_longer(settings)
    validation = None if held is None and measure is None else Validation(settings, held, measure)
    accelerator = build_accelerator(settings)
    loader = loader_of(settings, trained, sampler, accelerator.num_processes)
    plan = Plan(settings, objective, loader, len(trained), clip, checkpoint_manager, validation)
    attention = _attention(settings, objective, accelerator)
    refuse_idle(settings, plan.num_files, len(loader), accelerator.num_processes)
    others = [held] if held is not None and settings.val_dir is not None else []
    layers = getattr(objective.draft.config, FEATURE_LAYERS, None)
    records = hold_records(settings, layers, [dataset, *others], accelerator)
    resumed = take_directory(settings, accelerator)
    kept = log_to_keep(LOG, resumed, settings.resume_anyway) if accelerator.is_main_process else b""
    start_trackers(accelerator, settings, kept)
    if resumed is not None:
        load_weights(objective.draft, resumed.directory)
    elif begun is not None:
        accelerator.print(begun)
    accelerator.print(attention)
    loop = Loop(plan, accelerator, observer or Observer())
    if validation is not None:
        validation.check(loop)
    if resumed is not None:
        resume(loop, resumed, checkpoint_manager)
    if settings.overwrite and loop.accelerator.is_main_process:
        remove_run(settings.cpdir, checkpoint)
    for line in [*records, *told_place(objective.draft.config.speculators_config.verifier.name_or_path)]:
        accelerator.print(line, file=sys.stderr)
    return loop


def loader_of(
    settings: TrainingSettings, dataset: RecordDataset, sampler: Sampler[int] | Iterable[int] | None, processes: int
) -> DataLoader[Any]:
    """Batches of ``dataset`` in the order of the settings, or in that of a ``sampler``; whatever the ``processes``."""
    if sampler is None and settings.group_by_length:
        sampler = LengthGroupedSampler(record_sizes(dataset.files), settings.bs * processes, settings.seed)
    workers = 0 if settings.online else settings.num_workers  # the verifier lives in this process
    order = settings.bs, settings.shuffle, workers, sampler
    return build_loader(dataset, *order, settings.packing, settings.prefetch_factor)


def _attention(settings: TrainingSettings, objective: TTTObjective, accelerator: Accelerator) -> str:
    half = accelerator.mixed_precision == "bf16"
    dtype = torch.bfloat16 if half else next(objective.draft.parameters()).dtype
    return attention_line(settings.attn_implementation, accelerator.device, dtype)


def refuse_idle(settings: TrainingSettings, num_files: int, batches: int, processes: int) -> None:
    """Refuse a run that would take no optimizer step at a positive rate.

    ``batches`` are the whole ones of a pass over ``num_files`` records, of all processes together.

    Raises:
        InputError: fewer batches than processes, fewer records than a step takes, or the first step of a warm-up alone.
    """
    if batches < processes:
        together = f" * {processes} processes = {settings.bs * processes}" if processes > 1 else ""
        raise InputError(settings.tmpdir, "records", num_files, f"at least batch_size = {settings.bs}{together}")
    passes, accumulation = settings.epoch + 1, settings.gradient_accumulation_steps
    total, warmup = settings.schedule(num_files, processes)
    if total == 0:
        expected = f"at least {settings.samples_per_step(processes)}, as many as an optimizer step takes"
        raise InputError(settings.tmpdir, "records", f"{num_files} in {passes} passes", expected)
    steps = -(-(batches // processes) // accumulation) * passes
    if warmup and min(steps, settings.max_steps or steps) == 1:
        raise InputError("command line", "optimizer steps", 1, "at least 2: the first of a warm-up has rate 0")


def warn_of_longer(settings: TrainingSettings) -> None:
    """Features of positions that the verifier was not made for are of little worth; the default is the prototypes'."""
    positions = getattr(verifier_config(settings.basepath), "max_position_embeddings", None)
    if "max_len" in settings.model_fields_set and positions is not None and settings.max_len > positions:
        warnings.warn(f"--max-length {settings.max_len}: the verifier has {positions} positions", stacklevel=2)


def told_place(verifier: str) -> list[str]:
    """A line where the draft's config names its verifier by a place that no other machine has."""
    said = "this machine's, and so the draft's config names it; elsewhere --verifier names another"
    return [f"the verifier's place {verifier} is {said}"] if Path(verifier).is_dir() else []


def files_beside(settings: TrainingSettings) -> list[Path]:
    """What a draft's directory holds beside the draft: the verifier's tokenizer, and how the records were made."""
    made_from = settings.tmpdir / GENERATION
    return [*tokenizer_files(settings.basepath), *([made_from] if made_from.is_file() else [])]


def take_directory(settings: TrainingSettings, accelerator: Accelerator) -> Checkpoint | None:
    """Lock the checkpoint directory while the accelerator lives, clear away what a killed run left, and choose.

    What the main process chose, or its error, is every process's: files are hashed once.
    """
    check_named(settings.ckpt_path)
    found: list[Checkpoint | InputError | None] = [None]
    try:
        if accelerator.is_main_process:
            accelerator.directory_lock = DirectoryLock(settings.cpdir)
            sweep(settings.cpdir)
            found = [choose(settings, accelerator.print)]
    except InputError as error:
        found = [error]
    (chosen,) = broadcast_object_list(found)
    if isinstance(chosen, InputError):
        raise chosen
    return chosen


def finish(loop: Loop) -> nn.Module:
    """Train to the end; returns the objective that holds the trained draft."""
    trained = loop.run()
    loop.accelerator.end_training()
    if (draft := loop.plan.checkpoint_manager.newest) is not None:
        measured = f"speculator evaluate {draft} --prompts FILE measures it"
        loop.accelerator.print(f"the draft is {draft}; {measured}", file=sys.stderr)
    return trained


def train_command(settings_class: type[S], execute: Callable[[S], object]) -> flags.Command:
    """A command that seeds and executes; its exit code is 75 when a signal stopped the run.

    Output that nobody reads does not end a run.
    """
    return flags.command(settings_class, lambda settings: _execute(settings, execute))


def run_command(settings_class: type[S], execute: Callable[[S], object], argv: Sequence[str] | None = None) -> int:
    """Do what a command line asks of :func:`train_command`; exit codes: :func:`ports.commands.exit_code`."""
    return flags.run(lambda: train_command(settings_class, execute), argv)


def _execute(settings: S, execute: Callable[[S], object]) -> int:
    stop_with_launcher()
    check_output(settings.cpdir, "out")
    fix_numerics(settings.seed)
    try:
        with unread():
            execute(settings)
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_CODE
    return 0
