"""The same dialogues in every form that the port trains on: equal samples, whoever stored them.

Sample files and safetensors records, Speculators' arrow data, and ids alone with the verifier beside the draft. The
other side is computed here, from the verifier by transformers' own call.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parity.compare import compare, compare_series, compare_value
from parity.environment import quietly
from parity.prototypes.checks.beyond.forms import (
    Dialogue,
    read_dialogues,
    write_arrow,
    write_files,
    write_ids,
    write_records,
)
from parity.prototypes.checks.beyond.order import check_order
from parity.prototypes.checks.beyond.skipping import skipped_records
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.port import dataset_for, settings_for, start_port, trace_port
from parity.verdict import Row
from ports.training.alignment import Alignment
from ports.training.data.sources import recorded_layers
from ports.training.verifier import verifier_config

MAX_LEN = 20
"""Longer dialogues are cut, which is compared too."""


def check_sources(evidence: Evidence) -> list[Row]:
    """Ids, mask, features and target of every sample, by form; and the order of files and of grouped samples."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dialogues = read_dialogues(evidence.case, evidence.draft.config)
        rows = [*_stored(evidence, dialogues, folder), *_online(evidence, dialogues, folder)]
        rows += [*_packed(evidence, dialogues, folder), *_layers(evidence, dialogues, folder)]
        rows += [*_online_run(evidence, folder), *_dtypes(evidence, folder), _mixed(evidence, folder)]
        rows += _in_chain(evidence, dialogues, folder)
        rows += skipped_records(evidence, dialogues[0], folder / "skipped")
        return [*rows, *check_order(evidence, folder / "order")]


def _stored(evidence: Evidence, dialogues: list[Dialogue], folder: Path) -> Iterator[Row]:
    subject = evidence.subject("sources")
    for form, write in {"files": write_files, "records": write_records, "arrow": write_arrow}.items():
        write(folder / form, evidence.case, dialogues)
        dataset = dataset_for(evidence.case, evidence.draft.config, tmpdir=folder / form, max_len=MAX_LEN)
        for index, dialogue in enumerate(dialogues):
            sample = dataset[index]
            for name, value in _expected(dialogue, form == "arrow").items():
                own = getattr(sample, name)
                yield compare(subject, "batch", f"{form} {index}: {name}", value, own, evidence.tolerance("batch"))


def _in_chain(evidence: Evidence, dialogues: list[Dialogue], folder: Path) -> Iterator[Row]:
    """In chain the mask moves with the ids that it is about."""
    settings = {"tmpdir": folder / "files", "max_len": MAX_LEN, "ttt_alignment": Alignment.CHAIN}
    dataset = dataset_for(evidence.case, evidence.draft.config, **settings)
    for index, dialogue in enumerate(dialogues):
        expected = [*dialogue.mask[:MAX_LEN].tolist()[1:], 0]
        found = dataset[index].loss_mask.tolist()
        yield compare_value(evidence.subject("sources"), "batch", f"chain {index}: loss_mask", expected, found)


def _online(evidence: Evidence, dialogues: list[Dialogue], folder: Path) -> Iterator[Row]:
    """The batch of all dialogues, padded, against each alone."""
    write_ids(folder / "ids", evidence.case, dialogues)
    settings = {"tmpdir": folder / "ids", "online": True, "verifier_dtype": "float32", "max_len": MAX_LEN}
    dataset = dataset_for(evidence.case, evidence.draft.config, **settings)
    batch = dataset.collate_fn()([dataset[index] for index in range(len(dialogues))])
    subject = evidence.subject("sources")
    attached = [name for name, value in batch.items() if isinstance(value, Tensor) and value.requires_grad]
    yield compare_value(subject, "online", "with gradient", [], attached)
    for index, dialogue in enumerate(dialogues):
        for name, value in _expected(dialogue, arrow=False).items():
            quantity = "online" if value.is_floating_point() else "batch"
            own = batch[name][index, : len(value)]
            yield compare(subject, quantity, f"online {index}: {name}", value, own, evidence.tolerance(quantity))


def _online_run(evidence: Evidence, folder: Path) -> Iterator[Row]:
    """A run with ``--online`` has the losses of one on the files; its loader has no workers, whatever it asks for."""
    common: dict[str, Any] = {"live": True, "noise": False, "shuffle": False, "epoch": 0, "bs": 1, "max_len": MAX_LEN}
    stored, subject = trace_port(evidence.case, tmpdir=folder / "files", **common), evidence.subject("sources")
    common |= {"tmpdir": folder / "ids", "online": True, "verifier_dtype": "float32", "num_workers": 1}
    found = trace_port(evidence.case, **common)
    expected, own = ([point.loss for point in trace.curve] for trace in (stored, found))
    yield compare_series(subject, "loss", "online run", expected, own, evidence.tolerance("loss"))
    with quietly():
        loop: Any = start_port(evidence.case, folder / "online", **common)
        loop.accelerator.end_training()
    yield compare_value(subject, "online", "workers", 0, loop.plan.loader.num_workers)


def _packed(evidence: Evidence, dialogues: list[Dialogue], folder: Path) -> Iterator[Row]:
    """All dialogues end to end: whose each position is."""
    dataset = dataset_for(evidence.case, evidence.draft.config, tmpdir=folder / "files", max_len=MAX_LEN)
    batch = dataset.collate_fn(packing=True)([dataset[index] for index in range(len(dialogues))])
    lengths = [min(len(dialogue.ids), MAX_LEN) for dialogue in dialogues]
    numbers = [number for number, length in enumerate(lengths, 1) for _ in range(length)]
    subject, alone = evidence.subject("sources"), dataset.collate_fn(packing=True)([dataset[0]])
    yield compare_value(subject, "batch", "packed", [numbers], batch["document_ids"].tolist())
    yield compare_value(subject, "batch", "packed alone", [[1] * lengths[0]], alone["document_ids"].tolist())


def _mixed(evidence: Evidence, folder: Path) -> Row:
    """Files that say where they come from and files that do not lie side by side."""
    (folder / "mixed").mkdir()
    for source, name in (("records", "data_0.safetensors"), ("files", "data_1.ckpt")):
        shutil.copy(folder / source / name, folder / "mixed")
    dataset = dataset_for(evidence.case, evidence.draft.config, tmpdir=folder / "mixed", max_len=MAX_LEN)
    other = dataset_for(evidence.case, evidence.draft.config, tmpdir=folder / "files", max_len=MAX_LEN)
    expected, found = ([each[index].input_ids.tolist() for index in (0, 1)] for each in (other, dataset))
    return compare_value(evidence.subject("sources"), "batch", "mixed files", expected, found)


def _dtypes(evidence: Evidence, folder: Path) -> Iterator[Row]:
    """The verifier's precision beside the draft is the prototypes' unless another one is asked for."""
    own = {"eagle3": "auto", "hass": "float16"}[evidence.case.algorithm]
    for choice, expected in {"default": own, "auto": "auto", "float32": "float32", "bfloat16": "bfloat16"}.items():
        word = choice.upper().lower()  # a string of its own, as a command line gives
        settings = {"tmpdir": folder / "ids", "online": True, "verifier_dtype": word}
        found = dataset_for(evidence.case, evidence.draft.config, **settings).dtype
        yield compare_value(evidence.subject("sources"), "online", f"{choice} precision", expected, found)


def _layers(evidence: Evidence, dialogues: list[Dialogue], folder: Path) -> Iterator[Row]:
    """What data say of the layers their features are of: a draft config that names none takes them over."""
    subject, layers = evidence.subject("sources"), dialogues[0].layers
    count = verifier_config(str(evidence.case.verifier)).num_hidden_layers
    known = {"files": None, "records": list(layers) or None, "arrow": [2, count // 2, count - 3]}
    for form, expected in known.items():
        found = recorded_layers(settings_for(evidence.case, folder, tmpdir=folder / form))
        yield compare_value(subject, "layers", f"of {form}", expected, None if found is None else list(found))
    for name, changes in {"online": {"tmpdir": folder / "records", "online": True}, "nowhere": {}}.items():
        found = recorded_layers(settings_for(evidence.case, folder, **{"tmpdir": folder / "nowhere", **changes}))
        yield compare_value(subject, "layers", name, None, found)


def _expected(dialogue: Dialogue, arrow: bool) -> dict[str, Tensor]:
    """A sample as the prototypes make it: ids and target one to the left, the mask's last entry off."""
    ids, mask, target = (
        each[:MAX_LEN] for each in (dialogue.ids, dialogue.mask, dialogue.arrow_last if arrow else dialogue.last)
    )
    features = (dialogue.arrow_features if arrow else dialogue.features)[:MAX_LEN]
    shifted: dict[str, Any] = {"input_ids": ids, "target": target}
    moved = {name: torch.cat([value[1:], torch.zeros_like(value[:1])]) for name, value in shifted.items()}
    last_off = mask * (torch.arange(len(mask)) < len(mask) - 1)
    return {**moved, "features": features, "loss_mask": last_off}
