"""Records that a run is validated on: a share of its own, or a directory beside them; never trained on."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from ports.errors import InputError
from ports.training.data import CollateVisits, RecordDataset
from ports.training.prepared import PreparedDataset, is_prepared
from ports.training.records import check_origin, list_records
from ports.training.settings import TrainingSettings


class Share(Subset[Any]):
    """Some records of a source, in which samples keep their numbers, and which reads them."""

    dataset: RecordDataset

    @property
    def files(self) -> list[Path]:
        """Where they lie."""
        return [self.dataset.files[index] for index in self.indices]

    @property
    def on_host(self) -> bool:
        """The source's."""
        return self.dataset.on_host

    def collate_fn(self, packing: bool = False) -> CollateVisits:
        """The source's."""
        return self.dataset.collate_fn(packing)

    def start_pass(self, epoch: int, seen: int = 0, batch_size: int = 1, bad: bool = False) -> None:
        """The source's."""
        self.dataset.start_pass(epoch, seen, batch_size, bad)


def hold_out(
    source: RecordDataset, settings: TrainingSettings, draft: Any
) -> tuple[RecordDataset | Share, Share | None]:
    """What is trained on, and what is not; all and nothing without ``--val_fraction`` and ``--val_dir``.

    Raises:
        InputError: a share that is nothing or everything, or a directory of records that are trained on or do not
            belong to this verifier and draft.
    """
    count = len(source)
    if settings.val_dir is not None:
        source = copy.copy(source)
        source.files = [*source.files, *_other_records(source, settings, settings.val_dir, draft)]
        return Share(source, range(count)), Share(source, range(count, len(source)))
    if settings.val_fraction is None:
        return source, None
    held = drawn([_name(file, settings.tmpdir) for file in source.files], settings.val_fraction, settings.seed)
    if not 0 < len(held) < count:
        found = f"{settings.val_fraction} of {count} records, which is {len(held)}"
        raise InputError(settings.tmpdir, "--val_fraction", found, "a share that leaves some on either side")
    return Share(source, [index for index in range(count) if index not in held]), Share(source, sorted(held))


def drawn(names: Sequence[str], fraction: float, seed: int) -> set[int]:
    """The places of ``fraction`` of the records, to the nearest: of those whose names' digests come first."""
    digests = [hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in names]
    return set(sorted(range(len(names)), key=digests.__getitem__)[: round(fraction * len(names))])


def _name(file: Path, directory: Path) -> str:
    return file.relative_to(directory).as_posix() if file.is_relative_to(directory) else file.name


def _other_records(source: RecordDataset, settings: TrainingSettings, directory: Path, draft: Any) -> list[Path]:
    if isinstance(source, PreparedDataset) or is_prepared(directory):
        expected = "records beside records; of an arrow data set --val_fraction takes a share"
        raise InputError(directory, "--val_dir", "an arrow data set here or in --tmpdir", expected)
    files = list_records(directory, "--val_dir")
    trained = {file.resolve() for file in source.files}
    if any(file.resolve() in trained for file in files):
        raise InputError(directory, "--val_dir", "records of --tmpdir", "records that are not trained on")
    if not settings.online:
        layers = getattr(draft.config, "eagle_aux_hidden_state_layer_ids", None)
        check_origin(files, draft.config.speculators_model_type, settings.basepath, layers)
    return files
