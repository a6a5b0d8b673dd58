"""When a run is saved, what is written, and which older checkpoints go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor

from ports.errors import InputError
from ports.numerics import numerics
from ports.training.checkpoint import FOLDER
from ports.training.checkpoint.adam import adam_state
from ports.training.checkpoint.atomic import remove_directory, write_directory
from ports.training.checkpoint.choose import checkpoints_in
from ports.training.checkpoint.fingerprint import Fingerprint, fingerprint
from ports.training.checkpoint.manifest import seal
from ports.training.checkpoint.state import Log, Schedule, State, Totals, read_state, write_state
from ports.training.checkpoint.zero import zero_state
from ports.training.loop import Loop
from ports.training.saving import gather_weights, write_draft
from ports.training.settings import TrainingSettings
from ports.training.tracking import JsonLinesTracker

OPTIMIZER = f"{FOLDER}/optimizer.safetensors"
GENERATORS = f"{FOLDER}/generators.safetensors"


@dataclass
class Gathered:
    """What the processes hold together: whole on the main process, ``weights`` only where the draft's are in shards."""

    processes: list[tuple[dict[str, Any], dict[str, Tensor]]]
    adam: dict[str, Tensor]
    weights: dict[str, Tensor] | None


class CheckpointKeeper:
    """Saves ``cpdir/<prefix><pass>`` after every pass; ``cpdir/step_<n>`` every ``--save_steps`` and on a signal."""

    def __init__(self, settings: TrainingSettings, prefix: str, extra_files: Sequence[Path] = ()) -> None:
        self.settings, self.prefix, self.extra_files = settings, prefix, extra_files
        self.best: tuple[int, float] | None = None
        self._serial: int | None = None
        self._fingerprint: Fingerprint | None = None
        self._last: tuple[int, Path] | None = None

    def after_step(self, loop: Loop) -> None:
        """Every n-th optimizer step."""
        if self.settings.save_steps and loop.steps % self.settings.save_steps == 0:
            self.save(loop, f"step_{loop.steps}")

    def after_pass(self, loop: Loop, epoch: int, loss: float | None) -> None:
        """Every pass, also one that ``--max_steps`` cut short: its mean ``loss`` is None."""
        if loss is not None and (self.best is None or loss < self.best[1]):
            self.best = (epoch, loss)
        self.save(loop, f"{self.prefix}{epoch}")

    def on_stop(self, loop: Loop) -> Path:
        """Where the run stands now; saved already if this step was."""
        if self._last is not None and self._last[0] == loop.steps:
            return self._last[1]
        return self.save(loop, f"step_{loop.steps}")

    def save(self, loop: Loop, name: str) -> Path:
        """Write one checkpoint.

        Raises:
            InputError: it could not be written; older ones are whole.
        """
        directory = self.settings.cpdir / name
        gathered = self._gather(loop)
        if loop.accelerator.is_main_process:
            write_directory(directory, lambda folder: self._fill(folder, loop, gathered))
            self._thin_out()
        loop.accelerator.wait_for_everyone()
        self._last = loop.steps, directory
        return directory

    def _gather(self, loop: Loop) -> Gathered:
        """Every process takes part."""
        processes, weights = gather_object([_of_this_process(loop)]), None
        if loop.accelerator.distributed_type is DistributedType.FSDP:
            self.fingerprint(loop)
            weights = gather_weights(loop.objective.draft, loop.accelerator.is_main_process)
        zero = loop.accelerator.distributed_type is DistributedType.DEEPSPEED
        return Gathered(processes, (zero_state if zero else adam_state)(loop.objective, loop.optimizer), weights)

    def _fill(self, folder: Path, loop: Loop, gathered: Gathered) -> None:
        state = self._state(loop, [Totals(**totals) for totals, _ in gathered.processes])
        ranks = enumerate(drawn for _, drawn in gathered.processes)
        generators = {f"{rank}.{key}": value for rank, drawn in ranks for key, value in drawn.items()}
        write_draft(loop.objective.draft, folder, self.extra_files, gathered.weights)
        (folder / FOLDER).mkdir()
        save_file({name: value.cpu() for name, value in gathered.adam.items()}, folder / OPTIMIZER)
        save_file(generators, folder / GENERATORS)
        write_state(folder, state)
        seal(folder)

    def _state(self, loop: Loop, processes: list[Totals]) -> State:
        self._serial = self._next_serial()
        size, sha256 = _log(loop)
        return State(
            serial=self._serial,
            epoch=loop.epoch,
            micro_batch=loop.micro_batch,
            steps=loop.steps,
            processes=processes,
            schedule=_schedule(loop),
            log=Log(bytes=size, sha256=sha256),
            best=self.best,
            fingerprint=self.fingerprint(loop),
            versions={"torch": str(torch.__version__)},
            numerics=numerics(),
        )

    def fingerprint(self, loop: Loop) -> Fingerprint:
        """Made once a run, when it is first needed."""
        if self._fingerprint is None:
            accelerator, dataset = loop.accelerator, loop.plan.loader.dataset
            world = {
                "precision": accelerator.mixed_precision,
                "processes": accelerator.num_processes,
                "sharding": sharding(accelerator),
            }
            files = getattr(dataset, "files", ())
            self._fingerprint = fingerprint(self.settings, loop.objective.draft, files, world)
        return self._fingerprint

    def _next_serial(self) -> int:
        if self._serial is not None:
            return self._serial + 1
        return max((state.serial for state in self._kept().values()), default=-1) + 1

    def _kept(self) -> dict[Path, State]:
        states = {}
        for directory in checkpoints_in(self.settings.cpdir):
            try:
                states[directory] = read_state(directory)
            except InputError:  # damaged: --ckpt_path auto says so, here it is only not counted
                continue
        return states

    def _thin_out(self) -> None:
        if self.settings.keep_last is None:
            return
        states = self._kept()
        newest = sorted(states, key=lambda directory: states[directory].serial)
        best = None if self.best is None else self.settings.cpdir / f"{self.prefix}{self.best[0]}"
        for directory in newest[: -self.settings.keep_last]:
            if directory != best:
                remove_directory(directory)


def sharding(accelerator: Accelerator) -> str:
    """What spreads the states over the processes."""
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        clipping = accelerator.deepspeed_plugin.deepspeed_config.get("gradient_clipping")
        return f"ZeRO {accelerator.deepspeed_plugin.zero_stage}, gradients clipped to {clipping}"
    return "FSDP2" if accelerator.distributed_type is DistributedType.FSDP else "none"


def _of_this_process(loop: Loop) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Totals, and the generators now and at the start of the pass."""
    now = {f"now.{name}": value for name, value in loop.generators().items()}
    start = {f"start.{name}": value for name, value in loop.pass_start.items()}
    return vars(loop.totals).copy(), {**now, **start}


def _schedule(loop: Loop) -> Schedule:
    state = loop.schedule.state_dict()
    rates = [float(group["lr"]) for group in loop.optimizer.param_groups]
    return Schedule(last_epoch=state["last_epoch"], step_count=state["_step_count"], rates=rates)


def _log(loop: Loop) -> tuple[int, str]:
    for tracker in loop.accelerator.trackers:
        if isinstance(tracker, JsonLinesTracker):
            return tracker.written()
    return 0, ""
