"""Records that no run may train on, in both kinds of files, and what a run does that leaves them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from parity.checks.beyond.forms import Dialogue, record_info, record_of, write_noise
from parity.checks.evidence import Evidence
from parity.checks.kept.attempts import Attempt
from parity.runs.port import dataset_for
from ports.training.data.record_info import KEY

Record = dict[str, Any]


def _changes(record: Record, vocabulary: int) -> Iterator[tuple[str, str, Record]]:
    """(name, field, record) of one field that is wrong, or at the edge of what is right."""
    ids, mask, hidden = record["input_ids"], record["loss_mask"], record["hidden_state"]
    for name in record:
        yield f"{name} missing", name, {key: value for key, value in record.items() if key != name}
    for text, value in {
        "negative": _with(ids, -1),
        "beyond the vocabulary": _with(ids, vocabulary),
        "far beyond the vocabulary": _with(ids, vocabulary + 9),
        "in int32": ids.int(),
        "of two dimensions": ids[None],
        "of no dimension": ids[0],
        "empty": ids[:0],
    }.items():
        yield f"ids {text}", "input_ids", {**record, "input_ids": value}
    for text, value in {
        "too short": mask[1:],
        "too long": torch.cat([mask, mask[:1]]),
        "with a 2": _with(mask, 2),
        "with a -1": _with(mask, -1),
    }.items():
        yield f"mask {text}", "loss_mask", {**record, "loss_mask": value}
    for text, value in {
        "of whole numbers": hidden.long(),
        "too wide": torch.cat([hidden, hidden], -1),
        "too narrow": hidden[:, 1:],
        "too long": torch.cat([hidden, hidden]),
        "too short": hidden[1:],
        "with NaN": _with(hidden, float("nan")),
        "with Inf": _with(hidden, float("inf")),
    }.items():
        yield f"features {text}", "hidden_state", {**record, "hidden_state": value}
    yield "first and last id", "", {**record, "input_ids": _with(_with(ids, 0, 1), vocabulary - 1)}
    yield "half precision", "", {**record, "hidden_state": hidden.to(torch.bfloat16)}


def _with(values: Tensor, value: float, place: int = 0) -> Tensor:
    changed = values.clone()
    changed[place] = value
    return changed


def bad_records(evidence: Evidence, dialogue: Dialogue, folder: Path) -> Iterator[Attempt]:
    """As the data set reads them."""
    record, case = record_of(dialogue), evidence.case
    vocabulary = evidence.draft.config.transformer_layer_config.vocab_size
    info = record_info(case, dialogue, 0)
    for name, field, changed in _changes(record, vocabulary):
        for suffix, write in (("ckpt", torch.save), ("safetensors", _save(info.as_metadata()))):
            yield _reading(
                evidence, folder / name / suffix, f"{name} ({suffix})", field, f"data_0.{suffix}", write, changed
            )
    forms: dict[str, tuple[str, Any]] = {
        "a list": ("file", [1]),
        "ids as a list": ("input_ids", {**record, "input_ids": [1, 2]}),
        "code": ("file", {**record, "code": _Code()}),
    }
    for name, (field, content) in forms.items():
        yield _reading(evidence, folder / name, name, field, "data_0.ckpt", torch.save, content)
    for suffix in ("ckpt", "safetensors"):
        yield _reading(
            evidence, folder / "noise" / suffix, f"no {suffix}", "file", f"data_0.{suffix}", write_noise, None
        )
    yield from _origins(evidence, dialogue, folder / "origins")


def _reading(
    evidence: Evidence, folder: Path, name: str, field: str, file: str, write: Callable[..., object], content: Any
) -> Attempt:
    def attempt() -> object:
        folder.mkdir(parents=True)
        write(content, folder / file)
        return dataset_for(evidence.case, evidence.draft.config, tmpdir=folder)[0]

    return name, field, attempt


def _save(metadata: dict[str, str] | None) -> Callable[[Record, Path], None]:
    return lambda record, file: save_file({name: value.contiguous() for name, value in record.items()}, file, metadata)


class _Code:
    """Asks for a function to be called when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def _origins(evidence: Evidence, dialogue: Dialogue, folder: Path) -> Iterator[Attempt]:
    """Records of another algorithm, verifier, layers or release, or that say nothing."""
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "a newer release": ("schema_version", {"schema_version": 2}),
        "no release": ("schema_version", {"schema_version": 0}),
    }
    for name in ("alpha", "eagle3" if evidence.case.algorithm == "hass" else "hass", "zeta"):
        changes[f"another algorithm, {name}"] = ("algorithm", {"algorithm": name})
    for digit in "0f":
        changes[f"another verifier, {digit}"] = ("verifier", {"verifier": digit * 16})
    for layers in ((0, 0, 0), (99, 99, 99)) if dialogue.layers else ():
        changes[f"other layers, {layers}"] = ("feature_layers", {"feature_layers": layers})
    for name, (field, change) in changes.items():
        metadata = record_info(evidence.case, dialogue, 0, **change).as_metadata()
        yield _reading(evidence, folder / name, name, field, "data_0.safetensors", _save(metadata), record_of(dialogue))
    texts = {"records without origin": None, "an origin that is no JSON": {"speculator_record": "?"}}
    for name, text in texts.items():
        content = _save(text), record_of(dialogue)
        yield _reading(evidence, folder / name, name, "speculator_record", "data_0.safetensors", *content)
    origin = json.loads(record_info(evidence.case, dialogue, 0).as_metadata()[KEY]) | {"algorithm": 5, "row": "five"}
    content = _save({KEY: json.dumps({**origin, "schema_version": "five"})}), record_of(dialogue)
    name, field = "an origin with two faults", f"{KEY}.schema_version"
    yield _reading(evidence, folder / name, name, field, "data_0.safetensors", *content)
    yield "the second record of another verifier", "verifier", lambda: _second(evidence, dialogue, folder / "second")


def _second(evidence: Evidence, dialogue: Dialogue, folder: Path) -> None:
    folder.mkdir(parents=True)
    changes: list[dict[str, Any]] = [{}, {"verifier": "0" * 16}]
    for row, change in enumerate(changes):
        metadata = record_info(evidence.case, dialogue, row, **change).as_metadata()
        _save(metadata)(record_of(dialogue), folder / f"data_{row}.safetensors")
    dataset_for(evidence.case, evidence.draft.config, tmpdir=folder)[1]
