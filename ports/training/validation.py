"""A draft on held-out records while it is trained: its loss, and the acceptance that its chains can expect.

The records are a share of a run's own, or a directory beside them; they are never trained on.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from ports.errors import InputError, reason
from ports.files import name_in
from ports.numerics import wide_dtype
from ports.training.alignment import Alignment
from ports.training.data import Batch, RecordDataset, in_float32
from ports.training.launch import JsonLinesTracker
from ports.training.loop import Loop
from ports.training.loss import mean_over
from ports.training.masks import moved
from ports.training.metrics import Acceptance
from ports.training.prepared import PreparedDataset, is_prepared
from ports.training.records import check_origin, complete_records
from ports.training.settings import TrainingSettings
from ports.training.shards import reshard
from ports.training.stop import loader_context, start_worker

AS_SERVED: dict[str, Any] = {"noise": False, "alignment": Alignment.CHAIN}
"""How a data set gives its samples as a draft meets them."""

Measure = Callable[[Path], float]
"""The acceptance length of the draft in a directory, by decoding."""


def accuracies_of(counts: Tensor) -> list[float]:
    """From what :func:`ports.training.loss.count_chains` counts."""
    return [accepted / reached if reached else 0.0 for reached, accepted in counts.T.tolist()]


@dataclass
class Validation:
    """When a loop is validated, and on what: every ``--val-steps`` optimizer steps and after each pass.

    ``share`` are the records, if there are any; ``measure`` decodes prompts after each pass, if there are any. ``last``
    is what was found last.
    """

    settings: TrainingSettings
    share: RecordDataset | None
    measure: Measure | None
    last: Acceptance | None = None

    def check(self, loop: Loop) -> None:
        """Read all that is held out, once before anything is trained.

        Raises:
            InputError: a record that cannot be used, or none with a row in the loss.
        """
        if self.share is None:
            return
        rows = torch.zeros((), dtype=torch.int64, device=loop.accelerator.device)
        for batch in self._batches(loop):
            rows += batch["loss_mask"].sum()
        if int(loop.accelerator.reduce(rows, "sum")) == 0:
            found = f"no row in the loss in {len(self.share)} held-out records"
            raise InputError(
                self.settings.val_dir or self.settings.tmpdir, "records", found, "answers within --max-length"
            )
        loop.accelerator.print(f"validating on {len(self.share)} records")

    def is_due(self, steps: int) -> bool:
        """Every n-th optimizer step."""
        every = self.settings.val_steps
        return self.share is not None and every is not None and steps % every == 0

    def after_step(self, loop: Loop) -> None:
        """Where :meth:`is_due`.

        Raises:
            StoppedError: a signal came meanwhile, as in :meth:`after_pass`; what was found is forgotten.
        """
        self._log(loop, self._look(loop))

    def after_pass(self, loop: Loop) -> None:
        """Every pass, also one that ``--max-steps`` cut short; before it is saved."""
        loop.stop_if_asked()
        found = {} if self.share is None else self._look(loop)
        if self.measure is not None:
            found |= self._decode(loop, self.measure)
        if found:
            self._log(loop, found)

    def _look(self, loop: Loop) -> dict[str, Any]:
        if self.last is None or self.last.steps != loop.steps:
            self.last = self._score(loop)
        return {
            "val_loss": self.last.loss,
            "val_accuracies": self.last.accuracies,
            "val_expected_acceptance": self.last.expected,
        }

    def _score(self, loop: Loop) -> Acceptance:
        """The mean over all rows of all processes: the same on each."""
        device, steps = loop.accelerator.device, self.settings.forward_num_total
        total = torch.zeros(4, steps, dtype=wide_dtype(device), device=device)
        loop.module.eval()
        try:
            with torch.no_grad():
                for batch in self._batches(loop):
                    total += loop.forward(batch, None, True)
                    loop.stop_if_asked()
        finally:
            loop.module.train()
            reshard(loop.module)
        counts: Tensor = loop.accelerator.reduce(total, "sum").cpu()
        losses = mean_over(counts[0], counts[1])
        return Acceptance(loop.steps, loop.epoch, float(loop.objective.reported(losses)), accuracies_of(counts[2:]))

    def _batches(self, loop: Loop) -> Iterator[Batch]:
        """This process's. No random state is drawn from."""
        share, workers = self.share, 0 if self.settings.online else self.settings.num_workers
        assert share is not None
        loader: DataLoader[Any] = DataLoader(
            share,
            batch_sampler=self._places(loop.accelerator, len(share)),
            num_workers=workers,
            collate_fn=partial(share.batch_of, packing=self.settings.packing),
            multiprocessing_context=loader_context() if workers else None,
            worker_init_fn=start_worker,
            generator=torch.Generator(),
        )
        for batch in loader:
            for why in batch["skipped"]:
                print(f"skipped {why}", flush=True)
            tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
            yield in_float32(moved(tensors, loop.accelerator.device))

    def _places(self, accelerator: Accelerator, count: int) -> list[list[int]]:
        """The batches of one process. Every other has as many, as a sharded draft needs: the last may be empty."""
        size, processes = self.settings.bs, accelerator.num_processes
        places = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
        places += [[] for _ in range(-len(places) % processes)]
        return places[accelerator.process_index :: processes]

    def _decode(self, loop: Loop, measure: Measure) -> dict[str, Any]:
        """By the main process, on the draft as it would be saved; no generator is moved.

        Nothing is found where it fails: that is said, and the pass, which is not saved yet, goes on.
        """
        before, found = loop.generators(), {}
        folder = loop.plan.checkpoint_manager.write_draft(loop)
        if loop.accelerator.is_main_process:
            try:
                with loop.stop.interrupts():
                    found["chain_acceptance"] = measure(folder)
            except Exception as error:  # out of memory, the verifier's own
                loop.accelerator.print(f"not decoded: {self.settings.val_prompts}: {reason(error)}")
            shutil.rmtree(folder, ignore_errors=True)
        loop.put_back(before)
        loop.accelerator.wait_for_everyone()
        loop.stop_if_asked()
        return found

    def _log(self, loop: Loop, found: dict[str, Any]) -> None:
        line = {**found, "steps": loop.steps, "pass": loop.epoch}
        for tracker in loop.accelerator.trackers:
            tracker.log(line if isinstance(tracker, JsonLinesTracker) else _flat(line), step=loop.micro_batch)
        said = ", ".join(f"{name} {value:.4f}" for name, value in _flat(found).items())
        loop.say(f"Validation after optimizer step {loop.steps}: {said}")


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    """Without lists, which TensorBoard passes over: ``val_accuracies/1`` and so on."""
    flat: dict[str, Any] = {}
    for name, value in line.items():
        flat |= {f"{name}/{n}": each for n, each in enumerate(value, 1)} if isinstance(value, list) else {name: value}
    return flat


def hold_out(
    source: RecordDataset, settings: TrainingSettings, draft: Any
) -> tuple[RecordDataset, RecordDataset | None]:
    """What is trained on, and what is not: clean, in chain alignment, as drafts are served.

    That is all and nothing without ``--val-fraction`` and ``--val-dir``.

    Raises:
        InputError: a share that is nothing or everything, or a directory of records that are trained on or do not
            belong to this verifier and draft.
    """
    if settings.val_dir is not None:
        others = _other_records(source, settings, settings.val_dir, draft)
        return source, replace(source, files=others, **AS_SERVED)
    if settings.val_fraction is None:
        return source, None
    count = len(source)
    held = drawn([name_in(settings.tmpdir, file) for file in source.files], settings.val_fraction, settings.seed)
    if not 0 < len(held) < count:
        found = f"{settings.val_fraction} of {count} records, which is {len(held)}"
        raise InputError(settings.tmpdir, "--val-fraction", found, "a share that leaves some on either side")
    kept = [place for place in range(count) if place not in held]
    return _part(source, kept), _part(source, sorted(held), **AS_SERVED)


def _part(source: RecordDataset, places: Sequence[int], **changes: Any) -> RecordDataset:
    return replace(source, files=[source.files[place] for place in places], numbers=places, **changes)


def drawn(names: Sequence[str], fraction: float, seed: int) -> set[int]:
    """The places of ``fraction`` of the records, to the nearest: of those whose names' digests come first."""
    digests = [hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in names]
    return set(sorted(range(len(names)), key=digests.__getitem__)[: round(fraction * len(names))])


def _other_records(source: RecordDataset, settings: TrainingSettings, directory: Path, draft: Any) -> list[Path]:
    if isinstance(source, PreparedDataset) or is_prepared(directory):
        expected = "records beside records; of an arrow data set --val-fraction takes a share"
        raise InputError(directory, "--val-dir", "an arrow data set here or in --data", expected)
    files = complete_records(directory, "--val-dir")
    if {file.resolve() for file in source.files} & {file.resolve() for file in files}:
        raise InputError(directory, "--val-dir", "records of --data", "records that are not trained on")
    if not settings.online:
        layers = getattr(draft.config, "eagle_aux_hidden_state_layer_ids", None)
        check_origin(files, draft.config.speculators_model_type, settings.basepath, layers)
    return files
