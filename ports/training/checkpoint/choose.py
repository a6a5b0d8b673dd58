"""Which checkpoint a run starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ports.errors import InputError
from ports.training.checkpoint import FOLDER
from ports.training.checkpoint.atomic import present, public_name
from ports.training.checkpoint.manifest import NewerFormatError, verify
from ports.training.checkpoint.state import State, read_state
from ports.training.settings import TrainingSettings

AUTO = Path("auto")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """A directory to start from; without a ``state`` only its weights are taken."""

    directory: Path
    state: State | None


def choose(settings: TrainingSettings, say: Say = lambda line: None) -> Checkpoint | None:
    """The checkpoint that ``--ckpt_path`` means, verified; None for a fresh start.

    Raises:
        InputError: what was named is damaged or of a newer format; or ``auto`` found checkpoints, none of them whole.
    """
    if settings.ckpt_path is None:
        return None
    if settings.ckpt_path == AUTO:
        return newest_whole(settings.cpdir, say)
    if settings.weights_only or not (settings.ckpt_path / FOLDER).is_dir():
        return Checkpoint(settings.ckpt_path, None)
    verify(settings.ckpt_path)
    return Checkpoint(settings.ckpt_path, read_state(settings.ckpt_path))


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
    if not cpdir.is_dir():
        return []
    return sorted(path for path in present(cpdir) if (path / FOLDER).is_dir())
