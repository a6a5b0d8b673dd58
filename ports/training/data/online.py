"""Training without stored features: the verifier runs beside the draft, on the dialogues of each batch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ports.training.data.batches import CollateVisits, RecordDataset, Skipped
from ports.training.data.features import FeatureReader, load_verifier
from ports.training.data.records import Record, check_record, read_record
from ports.training.data.samples import Sample


@dataclass(frozen=True)
class Tokens:
    """A dialogue that has no features yet: number ``index`` of its data set."""

    index: int
    record: Record


@dataclass
class OnlineDataset(RecordDataset):
    """Records of which only ids and masks are read.

    Features are those of ``layers`` (Eagle3) or of the last (HASS), in ``dtype``, from the verifier at ``basepath``. It
    is loaded when the first batch is made: by then accelerate has chosen this process's device.
    """

    basepath: str = ""
    layers: Sequence[int] | None = None
    dtype: str = "auto"

    def __getitem__(self, index: int) -> Any:
        """Its tokens, as they will be cut; :class:`OnlineCollate` makes them a sample."""
        return self.visit(lambda: self._tokens(index))

    def _tokens(self, index: int) -> Tokens:
        record = read_record(self.files[index], {}, self.vocab_size, self.like)
        return Tokens(index, {name: value[: self.max_len] for name, value in record.items()})

    @cached_property
    def reader(self) -> FeatureReader:
        """The verifier."""
        return FeatureReader(load_verifier(self.basepath, self.dtype), self.layers)

    def collate_fn(self, packing: bool = False) -> CollateVisits:
        """Runs the verifier once a batch."""
        return OnlineCollate(self.widths, packing, dataset=self)


@dataclass(frozen=True, kw_only=True)
class OnlineCollate(CollateVisits):
    """Complete the dialogues of a batch, add noise in their order, and pad or pack."""

    dataset: OnlineDataset

    def __call__(self, visits: Sequence[Any]) -> dict[str, Any]:
        found = [visit for visit in visits if isinstance(visit, Tokens)]
        if found:
            self._warn_of_longer(max(len(tokens.record["input_ids"]) for tokens in found))
        features = iter(self.dataset.reader([visit.record["input_ids"] for visit in found]) if found else [])
        complete = [visit if isinstance(visit, Skipped) else self._complete(visit, features) for visit in visits]
        return super().__call__(complete)

    def _warn_of_longer(self, length: int) -> None:
        """Once a run, as warnings of one text are."""
        config = self.dataset.reader.model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and length > positions:
            said = (
                f"some dialogues are longer than the verifier's {positions} positions; --max_len {positions} cuts them"
            )
            warnings.warn(said, stacklevel=2)

    def _complete(self, tokens: Tokens, features: Any) -> Sample | Skipped:
        dataset, index = self.dataset, tokens.index
        record = {**tokens.record, **{name: value.cpu() for name, value in next(features).items()}}

        def make() -> Sample:
            return dataset.sample_of(
                index, check_record(dataset.files[index], record, dataset.widths, dataset.vocab_size)
            )

        return dataset.visit(make)
