"""When a run is saved, what is written, and which older checkpoints go."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DistributedType
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor

from ports.files import name_in
from ports.numerics import numerics
from ports.training.checkpoint import (
    BEST,
    FOLDER,
    GENERATORS,
    MARK,
    OPTIMIZER,
    Best,
    State,
    remove_directory,
    saved_by,
    seal,
    states_in,
    write_directory,
    write_file,
    write_state,
)
from ports.training.launch import JsonLinesTracker
from ports.training.loop import Loop
from ports.training.metrics import PassTotals
from ports.training.records import SUFFIX
from ports.training.saving import adam_state, write_draft, zero_state
from ports.training.settings import TrainingSettings
from ports.training.shards import full_tensor, tensors_digest
from ports.verifier.fingerprint import verifier_fingerprint

NEUTRAL = frozenset(
    {"cpdir", "ckpt_path", "progress", "debug", "log_with", "max_steps", "save_steps", "keep_last", "data_num"}
    | {"from_checkpoint"}
    | {"overwrite", "resume_anyway", "weights_only", "topk_w", "mixed_precision", "prefetch_factor", "report_data_wait"}
    | {"activation_checkpointing", "val_steps", "val_prompts", "val_tokens", "trust_remote_code", "records_check"}
)
"""Settings that no number depends on, or whose resolved value is taken instead."""

FEATURE_LAYERS = "eagle_aux_hidden_state_layer_ids"

PATHS = frozenset({"basepath", "configpath", "tmpdir", "t2d", "d2t", "val_dir"})
"""Files may move: what they hold is compared."""

SLOW = 10.0
"""Seconds of a save that is told of: after a signal too it takes as long, and not all who send one wait."""

TAIL = 4096
"""A ``*.ckpt`` is a zip archive, whose last bytes list the checksums of everything in it; a ``*.safetensors`` begins
with its header, ids and mask, and is digested from both ends."""

Fingerprint = dict[str, Any]
"""What a run depends on, by name: a resumed run must have the same."""


class CheckpointManager:
    """Saves ``cpdir/<prefix><pass>`` after every pass; ``cpdir/step_<n>`` every ``--save-steps`` and on a signal.

    ``best`` is the number and mean loss of the best pass, ``best_accepted`` the checkpoint that expects most to be
    accepted on held-out records; :data:`BEST` names it.
    """

    def __init__(self, settings: TrainingSettings, prefix: str, extra_files: Sequence[Path] = ()) -> None:
        self.settings, self.prefix, self.extra_files = settings, prefix, extra_files
        self.best: tuple[int, float] | None = None
        self.best_accepted: Best | None = None
        self._fingerprint: Fingerprint | None = None
        self._records_seen = ""
        self._last: tuple[int, Path] | None = None
        self._told = False

    def after_step(self, loop: Loop) -> None:
        """Every n-th optimizer step."""
        if self.settings.save_steps and loop.steps % self.settings.save_steps == 0:
            self._compete(loop, f"step_{loop.steps}")
            self.save(loop, f"step_{loop.steps}")

    def after_pass(self, loop: Loop, epoch: int, loss: float | None) -> None:
        """Every pass, also one that ``--max-steps`` cut short: its mean ``loss`` is None."""
        if loss is not None and (self.best is None or loss < self.best[1]):
            self.best = (epoch, loss)
        self._compete(loop, f"{self.prefix}{epoch}")
        self.save(loop, f"{self.prefix}{epoch}")

    def on_stop(self, loop: Loop) -> Path:
        """Where the run stands now; saved already if this step was."""
        if self._last is not None and self._last[0] == loop.steps:
            return self._last[1]
        return self.save(loop, f"step_{loop.steps}")

    @property
    def newest(self) -> Path | None:
        """The directory of the last checkpoint that this process saved."""
        return None if self._last is None else self._last[1]

    def save(self, loop: Loop, name: str) -> Path:
        """Write one checkpoint: every process gathers, the main one writes.

        Raises:
            InputError: it could not be written; older ones are intact.
        """
        directory, accelerator, begun = self.settings.cpdir / name, loop.accelerator, time.monotonic()
        times = {"now": loop.generators(), "start": loop.pass_start}
        every = gather_object([(loop.totals, {f"{t}.{name}": one for t in times for name, one in times[t].items()})])
        zero = accelerator.distributed_type is DistributedType.DEEPSPEED
        adam = _on_main(accelerator, (zero_state if zero else adam_state)(loop.objective, loop.optimizer))
        weights, fingerprint = self._weights(loop), self.fingerprint(loop)

        def fill(folder: Path) -> None:
            write_draft(loop.objective.draft, folder, self.extra_files, weights)
            (folder / FOLDER).mkdir()
            save_file(adam, folder / OPTIMIZER)
            drawn = {f"{rank}.{name}": one for rank, (_, own) in enumerate(every) for name, one in own.items()}
            save_file(drawn, folder / GENERATORS)
            write_state(folder, self._state(loop, [totals for totals, _ in every], fingerprint))
            seal(folder)

        if accelerator.is_main_process:
            write_directory(directory, fill)
            self.write_best()
            self._thin_out()
        accelerator.wait_for_everyone()
        self._last = loop.steps, directory
        if not self._told and time.monotonic() - begun > SLOW:
            self._told = True
            took = math.ceil(time.monotonic() - begun)
            accelerator.print(
                f"a save takes {took} s: after a signal too; launchers kill after 5 or 30 (docs/resume.md)"
            )
        return directory

    def write_draft(self, loop: Loop) -> Path:
        """The draft as it is now with what lies beside it in a checkpoint, in a folder that the caller removes."""
        weights, directory = self._weights(loop), self.settings.cpdir / f"{MARK}draft"
        if loop.accelerator.is_main_process:
            draft = loop.objective.draft
            write_directory(directory, lambda folder: write_draft(draft, folder, self.extra_files, weights))
        return directory

    def _weights(self, loop: Loop) -> dict[str, Tensor] | None:
        """Where the draft's own are in shards; every process must ask."""
        if loop.accelerator.distributed_type is not DistributedType.FSDP:
            return None
        return _on_main(loop.accelerator, loop.objective.draft.state_dict())

    def _compete(self, loop: Loop, name: str) -> None:
        """Is what will be saved, if it was validated as it is, the best so far?

        A run that is stopped saves where it would not have: that is no competitor, or it would end otherwise. What is
        written over is the best no longer.
        """
        seen = None if loop.plan.validation is None else loop.plan.validation.last
        if seen is None or seen.steps != loop.steps:
            return
        best = self.best_accepted
        if best is None or name == best.checkpoint or seen.expected > best.expected_acceptance:
            self.best_accepted = Best(
                checkpoint=name, expected_acceptance=seen.expected, epoch=seen.epoch, step=seen.steps
            )

    def write_best(self) -> None:
        """Say in ``cpdir`` which checkpoint is the best, or nothing if that is not known any more."""
        file = self.settings.cpdir / BEST
        if self.best_accepted is None:
            file.unlink(missing_ok=True)
        else:
            content = json.dumps(self.best_accepted.model_dump(by_alias=True), indent=1) + "\n"
            write_file(file, content.encode())

    def _state(self, loop: Loop, processes: list[PassTotals], fingerprint: Fingerprint) -> State:
        saved, _ = states_in(self.settings.cpdir)
        (log,) = (each.written() for each in loop.accelerator.trackers if isinstance(each, JsonLinesTracker))
        return State(
            serial=1 + max((state.serial for state in saved.values()), default=-1),
            epoch=loop.epoch,
            micro_batch=loop.micro_batch,
            steps=loop.steps,
            processes=processes,
            schedule=loop.schedule.state_dict()["last_epoch"],
            log=log,
            best=self.best,
            best_accepted=self.best_accepted,
            fingerprint=fingerprint,
            records_seen=self._records_seen,
            owes=loop.owes,
            numerics=numerics(),
        )

    def fingerprint(self, loop: Loop, saved: State | None = None) -> Fingerprint:
        """Made once a run, when it is first needed; records that are as ``saved`` saw them are not opened.

        Every process must ask.
        """
        if self._fingerprint is None:
            self._fingerprint, self._records_seen = take_fingerprint(loop, saved)
        return self._fingerprint

    def _thin_out(self) -> None:
        if self.settings.keep_last is None:
            return
        name = None if self.best is None else f"{self.prefix}{self.best[0]}"
        best = name if self.best_accepted is None else self.best_accepted.checkpoint
        saved = [each for each in states_in(self.settings.cpdir)[0] if saved_by(self.prefix, each)]
        for directory in saved[self.settings.keep_last :]:
            if directory.name != best and not directory.is_symlink():
                remove_directory(directory)


def _on_main(accelerator: Accelerator, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In full, on the CPU of the main process, one after the other; every process must ask."""
    whole = ((name, full_tensor(value)) for name, value in tensors.items())
    return {name: value.cpu() for name, value in whole if accelerator.is_main_process}


def sharding(accelerator: Accelerator) -> str:
    """What spreads the states over the processes."""
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        clipping = accelerator.deepspeed_plugin.deepspeed_config.get("gradient_clipping")
        return f"ZeRO {accelerator.deepspeed_plugin.zero_stage}, gradients clipped to {clipping}"
    return "FSDP2" if accelerator.distributed_type is DistributedType.FSDP else "none"


def take_fingerprint(loop: Loop, saved: State | None = None) -> tuple[Fingerprint, str]:
    """What a run depends on, and how its records look from outside.

    Settings by name, the number of loader processes where they draw the noise; precision, processes and what shards the
    states; digests of the records, of those held out, of the draft's config, the verifier, what the draft has of it,
    and the map.
    """
    settings, accelerator, draft = loop.plan.settings, loop.accelerator, loop.objective.draft
    files, validation = getattr(loop.plan.loader.dataset, "files", ()), loop.plan.validation
    layer = draft.config.transformer_layer_config.to_dict()
    shape = {name: value for name, value in layer.items() if name not in ("transformers_version", "_name_or_path")}
    layers = getattr(draft.config, FEATURE_LAYERS, None)
    shape |= {} if layers is None else {FEATURE_LAYERS: layers}
    draws = settings.noise and settings.noise_stream == "drawn" and not settings.online
    left_out = NEUTRAL | PATHS if draws else NEUTRAL | PATHS | {"num_workers"}
    seen = records_seen(settings.tmpdir, files)
    unchanged = saved is not None and saved.records_seen == seen and saved.fingerprint.get("records")
    found = {name: value for name, value in settings.as_json().items() if name not in left_out} | {
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "sharding": sharding(accelerator),
        "algorithm": draft.config.speculators_model_type,
        "draft": hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode()).hexdigest()[:16],
        "verifier": verifier_fingerprint(settings.basepath),
        "frozen": tensors_digest({n: value for n, value in draft.named_parameters() if not value.requires_grad}),
        "vocabulary": tensors_digest({n: value for n, value in draft.named_buffers() if n in ("t2d", "d2t")}),
        "records": unchanged or records_digest(settings.tmpdir, files),
    }
    if validation is not None and validation.share is not None:
        found["validation"] = records_digest(settings.val_dir or settings.tmpdir, validation.share.files)
    return found, seen


def records_digest(directory: Path, files: Iterable[Path]) -> str:
    """Names in order, sizes and ends: cheap for 68,000 files, and different for every other content."""
    digest = hashlib.sha256()
    for file in files:
        size, ends = _ends_of(file)
        digest.update(f"{name_in(directory, file)}\0{size}\0".encode() + ends)
    return digest.hexdigest()[:16]


def records_seen(directory: Path, files: Iterable[Path]) -> str:
    """Names in order, sizes and times of change; where these are the same nothing was written since."""
    digest = hashlib.sha256()
    for file in files:
        with contextlib.suppress(OSError):
            about = file.stat()
            times = (about.st_size, about.st_mtime_ns, about.st_ctime_ns)
            digest.update(f"{name_in(directory, file)}\0{times}\0".encode())
    return digest.hexdigest()


def _ends_of(file: Path) -> tuple[int, bytes]:
    """Size and last bytes; a record that cannot be read, which ``--on-bad-record skip`` allows, has neither."""
    try:
        size = file.stat().st_size
        if not file.is_file():  # a FIFO would be waited for
            return size, b""
        with file.open("rb") as stream:
            head = stream.read(TAIL) if file.suffix == SUFFIX else b""
            stream.seek(max(0, size - TAIL))
            return size, head + stream.read(TAIL)
    except OSError:
        return -1, b""
