"""Put a loop where a checkpoint was saved, to the bit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from accelerate import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ports.errors import InputError
from ports.training.checkpoint import generators
from ports.training.checkpoint.adam import load_adam_state
from ports.training.checkpoint.choose import Checkpoint
from ports.training.checkpoint.fingerprint import check_same
from ports.training.checkpoint.keeper import GENERATORS, OPTIMIZER, CheckpointKeeper
from ports.training.checkpoint.state import FILE, Log, State
from ports.training.checkpoint.zero import load_zero_state
from ports.training.loop import Loop, Replay
from ports.training.metrics import PassTotals
from ports.training.saving import load_weights

ORDER = frozenset(
    {"records", "bs", "num_workers", "shuffle", "group_by_length", "noise", "processes", "max_len", "on_bad_record"}
)
"""Where these differ the saved position in the pass means nothing: the pass starts anew."""


def resume(loop: Loop, checkpoint: Checkpoint, keeper: CheckpointKeeper) -> None:
    """Load everything of ``checkpoint`` into ``loop``.

    Raises:
        InputError: another run's checkpoint (see :func:`check_same`), or contents that do not fit.
    """
    directory, state = checkpoint.directory, checkpoint.state
    if state is None:
        return
    anyway = keeper.settings.resume_anyway
    changed = check_same(directory / FILE, state.fingerprint, keeper.fingerprint(loop), anyway)
    load_weights(loop.objective.draft, directory)
    zero = loop.accelerator.distributed_type is DistributedType.DEEPSPEED
    load = load_zero_state if zero else load_adam_state
    load(directory / OPTIMIZER, _tensors(directory / OPTIMIZER), loop.objective, loop.optimizer)
    _restore_schedule(loop, directory / FILE, state, "lr" in changed)
    keeper.best = state.best
    loop.steps, loop.micro_batch, loop.epoch = state.steps, state.micro_batch, state.epoch
    loop.loader.iteration = state.epoch
    if not ORDER & set(changed):
        _restore_position(loop, directory, state)
    for name, text in changed.items():
        loop.accelerator.print(f"resuming although {name} was {text}")


def _restore_schedule(loop: Loop, file: Path, state: State, new_rate: bool) -> None:
    groups, saved = loop.optimizer.param_groups, state.schedule
    if len(saved.rates) != len(groups):
        raise InputError(file, "schedule.rates", f"{len(saved.rates)} rates", f"{len(groups)}")
    own: dict[str, Any] = loop.schedule.state_dict()
    counters = {"last_epoch": saved.last_epoch, "_step_count": saved.step_count, "_last_lr": saved.rates}
    loop.schedule.load_state_dict({**own, **counters})
    rates = _rates(loop, saved.last_epoch) if new_rate else saved.rates
    for group, rate in zip(groups, rates):
        group["lr"] = rate


def _rates(loop: Loop, step: int) -> list[float]:
    """What the loop's own schedule has at ``step``."""
    schedule = getattr(loop.schedule, "scheduler", loop.schedule)
    return [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas)]


def _restore_position(loop: Loop, directory: Path, state: State) -> None:
    """Totals and generators of this process; the loop replays the pass up to there."""
    rank, file = loop.accelerator.process_index, directory / GENERATORS
    if rank >= len(state.processes):
        raise InputError(directory / FILE, "processes", len(state.processes), f"at least {rank + 1}")
    seen = {totals.batches for totals in state.processes}
    if len(seen) > 1 or max(seen) > len(loop.loader):
        expected = f"one number of at most {len(loop.loader)}, the batches of a pass"
        raise InputError(directory / FILE, "processes.batches", sorted(seen), expected)
    loop.totals = PassTotals(**state.processes[rank].model_dump())
    loop.learned = any(totals.rows for totals in state.processes)
    stored = _tensors(file)
    now, start = (_group(stored, f"{rank}.{when}.") for when in ("now", "start"))
    for state_of in (now, start):
        generators.check(file, state_of, generators.sampler_generator(loop.loader))
    loop.replay = Replay(start, now, file)


def _group(stored: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(file, "tensors", str(error), "a safetensors file") from error


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
        expected = f"the {log.bytes} bytes that the run logged; --resume_anyway starts a new log"
        raise InputError(source, "log", "missing or another log", expected)
    return content or b""


def _beginning(source: Path, log: Log) -> bytes | None:
    try:
        if source.stat().st_size < log.bytes:
            return None
        with source.open("rb") as stream:
            content = stream.read(log.bytes)
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == log.sha256 else None
