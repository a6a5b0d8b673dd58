"""Which checkpoint a run starts from, and how a loop is put where it was saved, to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import DistributedType

from ports.errors import InputError
from ports.training.checkpoint import (
    BEST,
    FOLDER,
    GENERATORS,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    Digest,
    OtherFormatError,
    State,
    read_state,
    remove_directory,
    saved_by,
    saved_in,
    states_in,
    verify,
)
from ports.training.checkpoint_manager import CheckpointManager, Fingerprint
from ports.training.generators import Replay
from ports.training.launch import LOG, SETTINGS
from ports.training.loop import Loop
from ports.training.saving import load_adam_state, load_zero_state, read_tensors
from ports.training.settings import TrainingSettings

AUTO = Path("auto")
SHOWN = 5
"""Drafts in a used directory that are named."""

FIXED = frozenset({"algorithm", "draft", "verifier", "frozen", "vocabulary"})
"""A run with another one of these is another run: not even ``--resume-anyway`` goes on."""

ORDER = frozenset(
    {"records", "bs", "num_workers", "shuffle", "group_by_length", "noise", "noise_stream", "processes", "max_len"}
    | {"on_bad_record"}
)
"""Where these differ the saved position in the pass means nothing: the pass starts anew."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """A directory to start from; without a ``state`` only its weights are taken."""

    directory: Path
    state: State | None


def choose(settings: TrainingSettings, say: Say = lambda line: None) -> Checkpoint | None:
    """The checkpoint that ``--resume`` means, verified; None for a fresh start.

    Raises:
        InputError: what was named is damaged or of a newer format; ``auto`` found checkpoints, none of them intact; or
            ``cpdir`` holds a run that this one would write over without having been asked to.
    """
    cpdir, path = settings.cpdir.resolve(), settings.ckpt_path
    if settings.overwrite and path is not None and (path == AUTO or path.resolve().is_relative_to(cpdir)):
        expected = "no --resume, or one outside --out: the run that is there goes"
        raise InputError("command line", "overwrite", f"--resume {path}", expected)
    chosen = newest_intact(settings.cpdir, say) if path == AUTO else _named(settings)
    goes_on = chosen is not None and chosen.state is not None and chosen.directory.resolve().parent == cpdir
    if not settings.overwrite and not goes_on:
        _refuse_used(settings.cpdir, path == AUTO)
    return chosen


def check_named(path: Path | None) -> None:
    """Refuse (InputError) a ``--resume`` that names nothing to start from."""
    if path is not None and path != AUTO and not any((path / name).exists() for name in (FOLDER, WEIGHTS)):
        expected = "a Speculators checkpoint's model.safetensors"
        raise InputError(path / WEIGHTS, "resume", "no such file", expected)


def _named(settings: TrainingSettings) -> Checkpoint | None:
    path = settings.ckpt_path
    if path is None:
        return None
    if settings.weights_only or not (path / FOLDER).is_dir():
        return Checkpoint(path, None)
    verify(path)
    return Checkpoint(path, read_state(path))


def _refuse_used(cpdir: Path, auto: bool) -> None:
    """``auto`` found no state here; it may start over a log, which is of a run that never came to a save."""
    drafts = [path.name for path in saved_in(cpdir)]
    if auto and drafts:
        expected = "a checkpoint to go on from; --overwrite starts afresh over them"
        raise InputError(cpdir, "resume", f"no training state in {', '.join(drafts[:SHOWN])}", expected)
    logged = [name for name in (LOG, SETTINGS) if (cpdir / name).exists()]
    if not auto and drafts + logged:
        expected = "--resume auto to go on with it, --overwrite to start afresh over it, or another --out"
        raise InputError(cpdir, "out", f"a run: {', '.join([*drafts[:SHOWN], *logged])}", expected)


def newest_intact(cpdir: Path, say: Say = lambda line: None) -> Checkpoint | None:
    """The checkpoint in ``cpdir`` that was saved last and is as its manifest says; damaged ones are passed over.

    Raises:
        InputError: one was written by another release, or there are some and every one is damaged.
    """
    states, damaged = states_in(cpdir)
    chosen = None
    for directory, state in states.items():
        try:
            verify(directory)
            chosen = Checkpoint(directory, state)
            break
        except InputError as error:
            damaged[directory] = error
    for why in damaged.values():
        if isinstance(why, OtherFormatError):
            raise why
    if chosen is None and damaged:
        found = f"only damaged checkpoints; the first: {next(iter(damaged.values()))}"
        raise InputError(cpdir, "resume", found, "one that can be gone on from")
    for directory, why in damaged.items():
        say(f"passing over {directory.name}, which is damaged: {why}")
    say(f"resuming from {chosen.directory}" if chosen else f"no checkpoint in {cpdir} yet: a fresh start")
    return chosen


def remove_run(cpdir: Path, prefix: str) -> None:
    """Delete what a run saved, ``<prefix><pass>`` and ``step_<n>``; directories of other names are their user's."""
    (cpdir / BEST).unlink(missing_ok=True)
    for directory in saved_in(cpdir):
        if saved_by(prefix, directory):
            remove_directory(directory)


def resume(loop: Loop, checkpoint: Checkpoint, checkpoint_manager: CheckpointManager) -> None:
    """Put ``loop``, whose draft has the weights of ``checkpoint``, where that was saved.

    Raises:
        InputError: another run's checkpoint (see :func:`check_same`), or contents that do not fit.
    """
    directory, state = checkpoint.directory, checkpoint.state
    if state is None:
        return
    anyway = checkpoint_manager.settings.resume_anyway
    own = checkpoint_manager.fingerprint(loop, state)
    unsaid = {name: value for name, value in checkpoint_manager.settings.defaults().items() if name in own}
    changed = check_same(directory / STATE, unsaid | state.fingerprint, own, anyway)
    zero = loop.accelerator.distributed_type is DistributedType.DEEPSPEED
    load, file = load_zero_state if zero else load_adam_state, directory / OPTIMIZER
    load(file, read_tensors(file), loop.objective, loop.optimizer)
    _restore_schedule(loop, state.schedule)
    checkpoint_manager.best = state.best
    best = state.best_accepted
    cpdir = checkpoint_manager.settings.cpdir
    if best is not None and "validation" not in changed and (cpdir / best.checkpoint).is_dir():
        checkpoint_manager.best_accepted = best
    loop.steps, loop.micro_batch, loop.epoch = state.steps, state.micro_batch, state.epoch
    loop.loader.iteration = state.epoch
    if not ORDER & set(changed):
        _restore_position(loop, directory, state)
    if best is not None and loop.accelerator.is_main_process:  # it may have been killed before it could
        checkpoint_manager.write_best()
    for name, text in changed.items():
        loop.accelerator.print(f"resuming although {name} was {text}")


def check_same(file: Path, stored: Fingerprint, own: Fingerprint, anyway: bool) -> dict[str, str]:
    """Refuse another run, with every difference; returns those that ``anyway`` lets pass, as ``stored, now own``.

    Raises:
        InputError: something differs and ``anyway`` is off, or something in :data:`FIXED` does.
    """
    found = {
        name: f"{stored.get(name, 'nothing')}, now {own.get(name, 'nothing')}"
        for name in sorted({*stored, *own})
        if stored.get(name) != own.get(name)
    }
    fixed = {name: text for name, text in found.items() if name in FIXED}
    if fixed or (found and not anyway):
        listed = "; ".join(f"{name} was {text}" for name, text in (fixed or found).items())
        way_out = "--weights-only starts a new run from its weights"
        if not fixed:
            way_out = f"--resume-anyway goes on with the new values, {way_out}"
        raise InputError(file, "fingerprint", listed, f"the run that was saved; {way_out}")
    return found


def _restore_schedule(loop: Loop, taken: int) -> None:
    """Put the scheduler behind ``taken`` steps; the rates are those of the run's own settings there."""
    schedule = getattr(loop.schedule, "scheduler", loop.schedule)
    rates = [base * factor(taken) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas)]
    counters = {"last_epoch": taken, "_step_count": taken + 1, "_last_lr": rates}
    schedule.load_state_dict({**schedule.state_dict(), **counters})
    for group, rate in zip(loop.optimizer.param_groups, rates):
        group["lr"] = rate


def _restore_position(loop: Loop, directory: Path, state: State) -> None:
    """Totals and generators of this process; the loop replays the pass up to there."""
    rank, file = loop.accelerator.process_index, directory / GENERATORS
    if rank >= len(state.processes):
        raise InputError(directory / STATE, "processes", len(state.processes), f"at least {rank + 1}")
    seen = {totals.batches for totals in state.processes}
    if len(seen) > 1 or max(seen) > len(loop.loader):
        expected = f"one number of at most {len(loop.loader)}, the batches of a pass"
        raise InputError(directory / STATE, "processes.batches", sorted(seen), expected)
    loop.totals = state.processes[rank].model_copy()
    loop.learned = any(totals.rows for totals in state.processes)
    stored = read_tensors(file)
    now, start = (
        {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
        for prefix in (f"{rank}.now.", f"{rank}.start.")
    )
    loop.replay, loop.owes = Replay(start, now, file), state.owes
    loop.cut_short = directory.name == f"step_{state.steps}"


def log_to_keep(name: str, checkpoint: Checkpoint | None, anyway: bool) -> bytes:
    """What the checkpoint's run had logged until then, in the file ``name`` beside the checkpoint.

    Raises:
        InputError: the log there is not the one that the checkpoint's run wrote.
    """
    if checkpoint is None or checkpoint.state is None or checkpoint.state.log.bytes == 0:
        return b""
    log, source = checkpoint.state.log, checkpoint.directory.parent / name
    content = _beginning(source, log)
    if content is None and not anyway:
        expected = f"the {log.bytes} bytes that the run logged; --resume-anyway starts a new log"
        raise InputError(source, "log", "missing or another log", expected)
    return content or b""


def _beginning(source: Path, log: Digest) -> bytes | None:
    """As much of ``source`` as ``log`` tells of; None if that is something else."""
    content = source.read_bytes()[: log.bytes] if source.is_file() else b""
    return content if hashlib.sha256(content).hexdigest() == log.sha256 else None
