"""Which checkpoint a run starts from."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ports.errors import InputError
from ports.training.checkpoint import FOLDER
from ports.training.checkpoint.atomic import present, public_name, remove_directory
from ports.training.checkpoint.manifest import NewerFormatError, verify
from ports.training.checkpoint.state import State, read_state
from ports.training.launch import LOG
from ports.training.settings import TrainingSettings
from ports.training.tracking import SETTINGS

AUTO = Path("auto")
WEIGHTS = "model.safetensors"
SHOWN = 5
"""Names of what lies in a used directory that are said; the others are counted."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """A directory to start from; without a ``state`` only its weights are taken."""

    directory: Path
    state: State | None


def choose(settings: TrainingSettings, say: Say = lambda line: None) -> Checkpoint | None:
    """The checkpoint that ``--ckpt_path`` means, verified; None for a fresh start.

    Raises:
        InputError: what was named is damaged or of a newer format; ``auto`` found checkpoints, none of them whole; or
            ``cpdir`` holds a run that this one would write over without having been asked to.
    """
    if settings.overwrite:
        _refuse_to_read_what_goes(settings)
    chosen = _asked_for(settings, say)
    if not settings.overwrite and not _goes_on_in(settings.cpdir, chosen):
        _refuse_used(settings.cpdir, settings.ckpt_path == AUTO)
    return chosen


def _asked_for(settings: TrainingSettings, say: Say) -> Checkpoint | None:
    if settings.ckpt_path is None:
        return None
    if settings.ckpt_path == AUTO:
        return newest_whole(settings.cpdir, say)
    if settings.weights_only or not (settings.ckpt_path / FOLDER).is_dir():
        return Checkpoint(settings.ckpt_path, None)
    verify(settings.ckpt_path)
    return Checkpoint(settings.ckpt_path, read_state(settings.ckpt_path))


def _refuse_to_read_what_goes(settings: TrainingSettings) -> None:
    path = settings.ckpt_path
    if path is not None and (path == AUTO or path.resolve().is_relative_to(settings.cpdir.resolve())):
        expected = "no --ckpt_path, or one outside --cpdir: the run that is there goes"
        raise InputError("command line", "overwrite", f"--ckpt_path {path}", expected)


def _goes_on_in(cpdir: Path, chosen: Checkpoint | None) -> bool:
    return chosen is not None and chosen.state is not None and chosen.directory.resolve().parent == cpdir.resolve()


def _refuse_used(cpdir: Path, auto: bool) -> None:
    """``auto`` found no state here; it may start over a log, which is of a run that never came to a save."""
    drafts = sorted(map(public_name, saved_in(cpdir)))
    if auto and drafts:
        expected = "a checkpoint to go on from; --overwrite starts afresh over them"
        raise InputError(cpdir, "ckpt_path", f"no training state in {_listed(drafts)}", expected)
    logged = [name for name in (LOG, SETTINGS) if (cpdir / name).exists()]
    if not auto and drafts + logged:
        expected = "--ckpt_path auto to go on with it, --overwrite to start afresh over it, or another --cpdir"
        raise InputError(cpdir, "cpdir", f"a run: {_listed(drafts + logged)}", expected)


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= SHOWN else f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"


def newest_whole(cpdir: Path, say: Say = lambda line: None) -> Checkpoint | None:
    """The checkpoint in ``cpdir`` that was saved last and is whole; damaged ones are named and passed over.

    Raises:
        InputError: one was written by a newer release, or there are some and every one is damaged.
    """
    damaged: list[InputError] = []
    states = _readable(cpdir, damaged, say)
    for directory in sorted(states, key=lambda path: states[path].serial, reverse=True):
        try:
            verify(directory)
        except NewerFormatError:
            raise
        except InputError as error:
            _pass_over(directory, error, damaged, say)
            continue
        say(f"resuming from {directory}")
        return Checkpoint(directory, states[directory])
    if damaged:
        raise InputError(cpdir, "ckpt_path", f"only damaged checkpoints; the first: {damaged[0]}", "a whole one")
    say(f"no checkpoint in {cpdir} yet: a fresh start")
    return None


def _readable(cpdir: Path, damaged: list[InputError], say: Say) -> dict[Path, State]:
    states = {}
    for directory in checkpoints_in(cpdir):
        try:
            states[directory] = read_state(directory)
        except NewerFormatError:
            raise
        except InputError as error:
            _pass_over(directory, error, damaged, say)
    return states


def _pass_over(directory: Path, error: InputError, damaged: list[InputError], say: Say) -> None:
    damaged.append(error)
    say(f"passing over {public_name(directory)}, which is damaged: {error}")


def checkpoints_in(cpdir: Path) -> list[Path]:
    """Every directory with a training state in ``cpdir``, in name order."""
    return [path for path in saved_in(cpdir) if (path / FOLDER).is_dir()]


def saved_in(cpdir: Path) -> list[Path]:
    """Every directory with a training state or a draft's weights in ``cpdir``, in name order."""
    if not cpdir.is_dir():
        return []
    return sorted(path for path in present(cpdir) if (path / FOLDER).is_dir() or (path / WEIGHTS).is_file())


def remove_run(cpdir: Path, prefix: str) -> None:
    """Delete what a run saved, ``<prefix><pass>`` and ``step_<n>``; directories of other names are their user's."""
    name = re.compile(rf"({re.escape(prefix)}|step_)\d+")
    for directory in saved_in(cpdir):
        if name.fullmatch(directory.name):
            remove_directory(directory)
