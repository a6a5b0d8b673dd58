"""Records that no run may train on, in both kinds of files, and what a run does that leaves them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor

from parity.checks.beyond.forms import Dialogue, record_info, record_of, write_arrow
from parity.checks.evidence import Evidence
from parity.compare import compare, compare_value
from parity.errors import InputError
from parity.result import Row
from parity.runs.port import dataset_for, trace_port
from ports.training.data.feature_layers import aux_layer_ids, chosen_layers
from ports.training.data.record_info import KEY

Attempt = tuple[str, str, Callable[[], object]]
Record = dict[str, Any]


def _changes(record: Record, vocabulary: int) -> Iterator[tuple[str, str, Record]]:
    """(name, field, record) of one field that is wrong, or at the edge of what is right."""
    ids, mask, hidden = record["input_ids"], record["loss_mask"], record["hidden_state"]
    for name in record:
        yield f"{name} missing", name, {key: value for key, value in record.items() if key != name}
    for text, value in {
        "negative": _with(ids, -1),
        "beyond the vocabulary": _with(ids, vocabulary),
        "in int32": ids.int(),
        "of two dimensions": ids[None],
        "of no dimension": ids[0],
        "empty": ids[:0],
    }.items():
        yield f"ids {text}", "input_ids", {**record, "input_ids": value}
    for text, value in {
        "of another length": mask[1:],
        "with a 2": _with(mask, 2),
        "with a -1": _with(mask, -1),
    }.items():
        yield f"mask {text}", "loss_mask", {**record, "loss_mask": value}
    for text, value in {
        "of whole numbers": hidden.long(),
        "too wide": torch.cat([hidden, hidden], -1),
        "too long": torch.cat([hidden, hidden]),
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
        yield _reading(evidence, folder / "noise" / suffix, f"no {suffix}", "file", f"data_0.{suffix}", _noise, None)
    yield "torch's own reason", "", lambda: _reasons(evidence, folder / "noise" / "ckpt")
    yield from _origins(evidence, dialogue, folder / "origins")
    yield from _arrow(evidence, dialogue, folder / "arrow data")
    yield from _nothing(evidence, folder)


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


def _noise(content: Any, file: Path) -> None:
    file.write_bytes(bytes(range(200)))


def _reasons(evidence: Evidence, folder: Path) -> None:
    """What torch says first of a file that it cannot read is what the refusal found."""
    try:
        torch.load(folder / "data_0.ckpt", weights_only=True)
    except Exception as error:
        said = str(error).strip().split("\n")[0]
    try:
        dataset_for(evidence.case, evidence.draft.config, tmpdir=folder)[0]
    except InputError as error:
        if error.found != said:
            raise


class _Code:
    """Asks for a function to be called when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def _origins(evidence: Evidence, dialogue: Dialogue, folder: Path) -> Iterator[Attempt]:
    """Records of another algorithm, verifier, layers or release, or that say nothing."""
    other = "hass" if evidence.case.algorithm == "eagle3" else "eagle3"
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "another algorithm": ("algorithm", {"algorithm": other}),
        "another verifier": ("verifier", {"verifier": "0" * 16}),
        "a newer release": ("schema_version", {"schema_version": 2}),
        "no release": ("schema_version", {"schema_version": 0}),
    }
    if dialogue.layers:
        changes["other layers"] = ("feature_layers", {"feature_layers": (0, 1, 2)})
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


def _arrow(evidence: Evidence, dialogue: Dialogue, folder: Path) -> Iterator[Attempt]:
    """Speculators' prepared data whose states do not fit its rows."""
    states = torch.stack([*(dialogue.arrow_states or [dialogue.before]), dialogue.before], dim=1)
    fitting = {"hidden_states": states, "token_ids": dialogue.ids}
    reversed_ids = {**fitting, "token_ids": dialogue.ids.flip(0)}
    narrow = {**fitting, "hidden_states": states[..., 1:].contiguous()}
    files: dict[str, tuple[str, Callable[[Path], object]]] = {
        "as written": ("", lambda file: None),
        "without states": ("hidden_states", lambda file: file.unlink()),
        "of noise": ("hidden_states", lambda file: _noise(None, file)),
        "of other ids": ("token_ids", partial(save_file, reversed_ids)),
        "of another width": ("hidden_states", partial(save_file, narrow)),
    }
    folder.mkdir(parents=True)
    for name, (field, spoil) in files.items():

        def attempt(name: str = name, spoil: Callable[[Path], object] = spoil) -> object:
            write_arrow(folder / name, evidence.case, [dialogue])
            spoil(folder / name / "hidden_states" / "hs_0.safetensors")
            return dataset_for(evidence.case, evidence.draft.config, tmpdir=folder / name)[0]

        yield f"arrow data {name}", field, attempt


def _second(evidence: Evidence, dialogue: Dialogue, folder: Path) -> None:
    folder.mkdir(parents=True)
    changes: list[dict[str, Any]] = [{}, {"verifier": "0" * 16}]
    for row, change in enumerate(changes):
        metadata = record_info(evidence.case, dialogue, row, **change).as_metadata()
        _save(metadata)(record_of(dialogue), folder / f"data_{row}.safetensors")
    dataset_for(evidence.case, evidence.draft.config, tmpdir=folder)[1]


def _nothing(evidence: Evidence, folder: Path) -> Iterator[Attempt]:
    """No data, and layers that a verifier has not."""
    (folder / "empty").mkdir()
    (folder / "arrow").mkdir()
    for mark in ("dataset_info.json", "state.json"):
        (folder / "arrow" / mark).write_text("{}")
    build = partial(dataset_for, evidence.case, evidence.draft.config)
    for name in ("empty", "missing", "arrow"):
        yield f"{name} folder", "tmpdir", partial(build, tmpdir=folder / name)
    Dataset.from_dict({"input_ids": []}).save_to_disk(folder / "no rows")
    yield "arrow data of no rows", "tmpdir", partial(build, tmpdir=folder / "no rows")
    yield "arrow data with --online", "--online", partial(build, tmpdir=folder / "arrow", online=True)
    yield "a verifier of two layers", "num_hidden_layers", lambda: aux_layer_ids("verifier", 2)
    yield "a verifier of three layers", "", lambda: aux_layer_ids("verifier", 3)
    for choice in ("1,2", "1,1,2", "1,2,x", "0,2,x", "0,1,32", "0,1,33"):
        yield f"layers {choice}", "--aux_layers", partial(chosen_layers, choice, "verifier", 32)


def skipped_records(evidence: Evidence, dialogue: Dialogue, folder: Path) -> Iterator[Row]:
    """``--on_bad_record skip``: a batch is the batch of its good records, and what was left out is counted."""
    folder.mkdir()
    record = record_of(dialogue)
    torch.save(record, folder / "data_0.ckpt")
    _noise(None, folder / "data_1.ckpt")
    settings: dict[str, Any] = {"noise": False, "shuffle": False, "epoch": 0, "on_bad_record": "skip", "live": True}
    both, subject = trace_port(evidence.case, tmpdir=folder, bs=2, **settings), evidence.subject("refusals")
    (folder / "data_1.ckpt").unlink()
    alone = trace_port(evidence.case, tmpdir=folder, bs=1, **settings)
    for name in ("input_ids", "attention_mask", "hidden_states", "target"):
        expected, found = (trace.tensors[f"mb0.batch.{name}"] for trace in (alone, both))
        yield compare(subject, "batch", f"skipped beside: {name}", expected, found, evidence.tolerance("batch"))
    yield compare_value(subject, "prints", "skipped beside", ["Skipped 1 bad records"], both.prints[-1:])
    _noise(None, folder / "data_0.ckpt")
    none = trace_port(evidence.case, tmpdir=folder, bs=1, **settings)
    yield compare_value(subject, "rows", "skipped alone", (0, 0.0, {}), _first(none))
    yield compare_value(subject, "rows", "skipped alone: ids", [[0]], none.tensors["mb0.batch.input_ids"].tolist())
    width, hidden = dialogue.features.shape[-1], dialogue.last.shape[-1]
    shapes = {"input_ids": [1, 1], "loss_mask": [1, 1], "hidden_states": [1, 1, width], "target": [1, 1, hidden]}
    own = {name: list(none.tensors[f"mb0.batch.{name}"].shape) for name in shapes}
    yield compare_value(subject, "rows", "skipped alone: shapes", shapes, own)
    sums = [float(none.tensors[f"mb0.batch.{name}"].sum()) for name in shapes]
    yield compare_value(subject, "rows", "skipped alone: sums", [0.0] * len(shapes), sums)


def _first(trace: Any) -> tuple[int, float, dict[str, float]]:
    point = trace.curve[0]
    return point.rows, point.loss, dict(point.logged)
