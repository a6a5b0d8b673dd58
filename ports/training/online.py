"""The verifier's hidden states: which layers a draft takes, read on dialogues, and training without stored ones.

Shapes: T tokens of one dialogue, h hidden size, F width of the features (3h for Eagle3, h for HASS). Layers are entries
of ``hidden_states``, 0 is the embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ports.errors import InputError, reason
from ports.training.data import RecordDataset, Skipped
from ports.training.records import Record, check_record, read_record
from ports.verifier.loading import load_verifier

PROTOTYPE_DTYPE = {"eagle3": "auto", "hass": "float16"}
"""The prototypes' precision of the verifier."""

NUM_FEATURES = 3
"""Verifier layers that an Eagle3 draft's features come from."""


def aux_layer_ids(basepath: str, num_layers: int) -> list[int]:
    """After how many verifier layers the features are taken: 3, n // 2 + 1 and n - 2, as in the prototype's data.

    Speculators and vLLM count the same way (0 is the embedding), but their own rule is one layer less at each place.
    Speculators refuses repeated ids, and the rule repeats them for verifiers of 4 to 6 layers; three neighbouring
    distinct layers are taken then and a warning says so.

    Raises:
        InputError: the verifier at ``basepath`` has fewer than three layers, so that the rule names none of them.
    """
    if num_layers < NUM_FEATURES:
        raise InputError(basepath, "num_hidden_layers", num_layers, f"at least {NUM_FEATURES}, to take features from")
    ids, distinct = [3, num_layers // 2 + 1, num_layers - 2], list[int]()
    for wanted in ids:
        free = [layer for layer in range(num_layers + 1) if layer not in distinct]
        distinct.append(min(free, key=lambda layer: abs(layer - wanted)))
    if distinct != ids:
        warnings.warn(
            f"a verifier of {num_layers} layers gives feature layers {ids}, which Speculators cannot record; "
            f"{distinct} are named instead; a draft on records of the prototypes could not be served with them",
            stacklevel=2,
        )
    return distinct


def chosen_layers(choice: str, verifier: str, num_layers: int) -> list[int]:
    """The three entries that ``choice`` names: ``prototype``, ``speculators`` (2, n // 2 and n - 3), or ``a,b,c``.

    Raises:
        InputError: anything else, an entry that the verifier does not have, or one named twice by the user.
    """
    if choice == "prototype":
        return aux_layer_ids(verifier, num_layers)
    listed = [int(word) if word.strip().isdecimal() else -1 for word in choice.split(",")]
    layers = [2, num_layers // 2, num_layers - 3] if choice == "speculators" else listed
    if len(set(layers)) != NUM_FEATURES or not all(0 <= layer < num_layers for layer in layers):
        expected = f"prototype, speculators, or {NUM_FEATURES} different entries below {num_layers}, as in 2,16,29"
        raise InputError("command line", "--aux-layers", f"{choice} ({layers})", expected)
    return layers


def checked_device(name: str) -> torch.device:
    """The device of that name; InputError if torch has none here, or one that computes nothing."""
    try:
        there = torch.empty(1, device=name)
        there.cpu()  # nothing comes back from meta
        return there.device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = f"{name} ({reason(error)})"
        raise InputError("command line", "--device", found, "a device that torch has here") from error


class FeatureReader:
    """Gives ``hidden_state`` [T, F] and, with ``layers``, ``target`` [T, h] of dialogues, in the verifier's dtype.

    Args:
        model: the verifier.
        layers: entries of ``hidden_states`` to put side by side (Eagle3); none for HASS, whose features are the last
            entry, after the final norm.
    """

    def __init__(self, model: Any, layers: Sequence[int] | None) -> None:
        self.model, self.layers = model, layers

    @torch.no_grad()
    def __call__(self, dialogues: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """One dict a dialogue; ``dialogues`` are ids [T] int64."""
        lengths = [len(ids) for ids in dialogues]
        states = self._states(dialogues, lengths)
        fields = {"hidden_state": states[-1]}
        if self.layers is not None:
            fused = torch.cat([states[layer].to(states[-1].device) for layer in self.layers], dim=-1)
            fields = {"hidden_state": fused, "target": states[-1]}
        return [{name: value[row, :length] for name, value in fields.items()} for row, length in enumerate(lengths)]

    def _states(self, dialogues: Sequence[Tensor], lengths: list[int]) -> tuple[Tensor, ...]:
        """All n + 1 entries [B, T, h]. Padding is on the right, where no real token looks."""
        padded = pad_sequence(list(dialogues), batch_first=True).to(self.model.device)
        real = torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None]
        mask = None if bool(real.all()) else real.to(self.model.device)
        return self.model(
            input_ids=padded, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states


@dataclass
class OnlineDataset(RecordDataset):
    """Records of which only ids and masks are read.

    Features are those of ``layers`` (Eagle3) or of the last (HASS), in ``dtype``, from the verifier at ``basepath``,
    and stay on its device. It is loaded when it is first needed: by then accelerate has chosen this process's device;
    ``readers`` then has it for every part of the records.
    """

    basepath: str = ""
    layers: Sequence[int] | None = None
    dtype: str = "auto"
    readers: list[FeatureReader] = field(default_factory=list)

    def sample(self, index: int) -> tuple[int, Record]:
        """Its tokens, as they will be cut; :meth:`batch_of` makes them a sample."""
        record = read_record(self.files[index], {}, self.vocab_size, self.like)
        return index, {name: value[: self.max_len] for name, value in record.items()}

    def record(self, index: int) -> Record:
        """One checked record, on the CPU, with the features that the verifier gives of it now."""
        file = self.files[index]
        tokens = read_record(file, {}, self.vocab_size, self.like)
        (features,) = self.reader([tokens["input_ids"]])
        whole = {**tokens, **{name: value.cpu() for name, value in features.items()}}
        return check_record(file, whole, self.widths, self.vocab_size)

    def clean_features(self, index: int) -> Tensor:
        """Of the shape and dtype that the verifier would give."""
        _, record = self.sample(index)
        return torch.empty(len(record["input_ids"]), self.widths["hidden_state"], dtype=self.reader.model.dtype)

    @property
    def reader(self) -> FeatureReader:
        """The verifier."""
        if not self.readers:
            self.readers.append(FeatureReader(load_verifier(self.basepath, self.dtype), self.layers))
        return self.readers[0]

    def batch_of(self, visits: Sequence[Any], packing: bool = False) -> dict[str, Any]:
        """Runs the verifier once for all dialogues, and adds noise in their order."""
        dialogues = [visit[1]["input_ids"] for visit in visits if not isinstance(visit, Skipped)]
        if dialogues:
            self._warn_of_longer(max(map(len, dialogues)))
        features = iter(self.reader(dialogues) if dialogues else [])
        complete = [visit if isinstance(visit, Skipped) else self._complete(visit, next(features)) for visit in visits]
        return super().batch_of(complete, packing)

    def _warn_of_longer(self, length: int) -> None:
        """Once a run, as warnings of one text are."""
        config = self.reader.model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and length > positions:
            said = f"some dialogues are longer than the verifier's {positions} positions"
            warnings.warn(f"{said}; --max-length {positions} cuts them", stacklevel=2)

    def _complete(self, visit: tuple[int, Record], features: Record) -> Any:
        index, tokens = visit
        file, record = self.files[index], {**tokens, **features}
        return self.visit(lambda: self.sample_of(index, check_record(file, record, self.widths, self.vocab_size)))
