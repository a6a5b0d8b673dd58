"""A few dialogues of a case with their verifier's states, and the forms in which a port can be handed them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel

from parity.files import read_sample
from parity.prototypes.case import Case
from ports.generate.records import write_record
from ports.training.data.record_info import RecordInfo
from ports.training.verifier_fingerprint import verifier_fingerprint

LENGTHS = (24, 11, 2)
"""Tokens that are taken of each dialogue: more than a sample may have, fewer, and fewer than there are dialogues."""


@dataclass(frozen=True)
class Dialogue:
    """``ids`` and ``mask`` [T]; ``last`` [T, h] after the verifier's final norm and ``before`` it.

    ``features`` [T, F] are of the draft's ``layers``, ``arrow_features`` of those that Speculators takes; HASS has the
    last state for both. ``arrow_last`` is ``before`` after the final norm in the verifier's own precision.
    """

    ids: Tensor
    mask: Tensor
    last: Tensor
    before: Tensor
    arrow_last: Tensor
    features: Tensor
    arrow_features: Tensor
    arrow_states: list[Tensor]
    layers: tuple[int, ...]


def read_dialogues(case: Case, config: Any) -> list[Dialogue]:
    """The first samples of a case, with states computed one dialogue at a time in float32."""
    model = AutoModel.from_pretrained(case.verifier, dtype=torch.float32).eval()
    count, norm = len(model.layers), AutoModel.from_pretrained(case.verifier, dtype="auto").norm
    layers = getattr(config, "eagle_aux_hidden_state_layer_ids", None) or ()
    found = []
    for name, length in zip(case.meta.samples_files, LENGTHS):
        sample = read_sample(case.tmpdir / name, ("input_ids", "loss_mask"))
        ids, mask = (sample[field][:length] for field in ("input_ids", "loss_mask"))
        states, before = _states(model, ids)
        arrow_last = norm(before.to(norm.weight.dtype)).detach()
        arrow = [states[layer] for layer in (2, count // 2, count - 3)] if layers else []
        features = torch.cat([states[layer] for layer in layers], -1) if layers else states[-1]
        arrow_features = torch.cat(arrow, -1) if layers else arrow_last
        last = states[-1], before, arrow_last
        found.append(Dialogue(ids, mask, *last, features, arrow_features, arrow, tuple(layers)))
    return found


@torch.no_grad()
def _states(model: Any, ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """All entries of ``hidden_states`` [T, h], and the last layer's output before the final norm."""
    before: list[Any] = []
    hook = model.norm.register_forward_pre_hook(lambda module, inputs: before.append(inputs[0]))
    states = model(ids[None], output_hidden_states=True, use_cache=False).hidden_states
    hook.remove()
    return [state[0].clone() for state in states], before[0][0].clone()


def record_of(dialogue: Dialogue) -> dict[str, Tensor]:
    """The fields of a sample file."""
    record = {"input_ids": dialogue.ids, "loss_mask": dialogue.mask.long(), "hidden_state": dialogue.features}
    return {**record, "target": dialogue.last} if dialogue.layers else record


def record_info(case: Case, dialogue: Dialogue, row: int, **changes: Any) -> RecordInfo:
    """What a record of the case's own verifier says about itself."""
    values: dict[str, Any] = {
        "algorithm": case.algorithm,
        "verifier": verifier_fingerprint(str(case.verifier)),
        "tokenizer": "none",
        "feature_layers": dialogue.layers,
        "loss_mask": "exact",
        "chat_template": "plain",
        "row": row,
    }
    return RecordInfo(**{**values, **changes})


def write_files(folder: Path, case: Case, dialogues: list[Dialogue]) -> None:
    """The prototypes' ``*.ckpt``."""
    folder.mkdir()
    for row, dialogue in enumerate(dialogues):
        torch.save(record_of(dialogue), folder / f"data_{row}.ckpt")


def write_ids(folder: Path, case: Case, dialogues: list[Dialogue]) -> None:
    """Ids and masks alone."""
    folder.mkdir()
    for row, dialogue in enumerate(dialogues):
        torch.save({"input_ids": dialogue.ids, "loss_mask": dialogue.mask}, folder / f"data_{row}.ckpt")


def write_records(folder: Path, case: Case, dialogues: list[Dialogue]) -> None:
    """``*.safetensors`` that say where they come from."""
    folder.mkdir()
    for row, dialogue in enumerate(dialogues):
        write_record(folder / f"data_{row}.safetensors", record_of(dialogue), record_info(case, dialogue, row))


def write_arrow(folder: Path, case: Case, dialogues: list[Dialogue]) -> None:
    """Speculators' prepared data: an arrow data set, and the states of every row beside it."""
    columns = {
        "input_ids": [each.ids.tolist() for each in dialogues],
        "loss_mask": [each.mask.tolist() for each in dialogues],
        "seq_len": [len(each.ids) for each in dialogues],
    }
    Dataset.from_dict(columns).with_format("torch").save_to_disk(folder)
    (folder / "hidden_states").mkdir()
    for row, each in enumerate(dialogues):
        others = each.arrow_states or [each.before]
        tensors = {"hidden_states": torch.stack([*others, each.before], dim=1), "token_ids": each.ids}
        save_file(tensors, folder / "hidden_states" / f"hs_{row}.safetensors")


def write_noise(content: Any, file: Path) -> None:
    """Bytes of no format."""
    file.write_bytes(bytes(range(200)))
