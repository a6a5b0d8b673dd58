"""Speculators' arrow data give the targets and features that the prototypes' files hold."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, load_from_disk
from safetensors.torch import load_file, save_file

from ports.verifier.loading import load_verifier
from tests.ports.conftest import TRAIN, settings_of
from tests.ports.training.conftest import PREFIX

LAYERS = (2, 4, 5)
"""Speculators' rule for eight layers."""


@pytest.fixture
def both(fixture, tmp_path):
    """The same dialogues as arrow with hidden states, and as records; in the verifier's float32."""
    model = load_verifier(str(fixture / "verifier"), "float32", "cpu")
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(0, 61, (length,), generator=generator) for length in (9, 5, 12, 7)]
    masks = [(torch.arange(len(ids)) > 2).long() for ids in rows]
    columns = {"input_ids": [ids.tolist() for ids in rows], "loss_mask": [mask.tolist() for mask in masks]}
    prepared = tmp_path / "prepared"
    Dataset.from_dict(columns | {"seq_len": [len(ids) for ids in rows]}).with_format("torch").save_to_disk(prepared)
    for folder in (prepared / "hidden_states", *(tmp_path / algorithm for algorithm in TRAIN)):
        folder.mkdir()
    for row, (ids, mask) in enumerate(zip(rows, masks)):
        features, before, after = _states(model, ids)
        stacked = {"hidden_states": torch.stack([*features, before], dim=1), "token_ids": ids}
        save_file(stacked, prepared / "hidden_states" / f"hs_{row}.safetensors")
        said, fused = {"input_ids": ids, "loss_mask": mask}, torch.cat(features, -1)
        torch.save({**said, "hidden_state": fused, "target": after}, tmp_path / "eagle3" / f"data_{row}.ckpt")
        torch.save({**said, "hidden_state": after}, tmp_path / "hass" / f"data_{row}.ckpt")
    return prepared


@torch.no_grad()
def _states(model, ids):
    """Of the layers, of the last before the verifier's final norm, and after it."""
    before = []
    handle = model.norm.register_forward_pre_hook(lambda module, inputs: before.append(inputs[0][0].clone()))
    states = model(ids[None], output_hidden_states=True, use_cache=False).hidden_states
    handle.remove()
    return [states[layer][0].clone() for layer in LAYERS], before[0], states[-1][0].clone()


@pytest.fixture
def dataset(fixture, tmp_path):
    """``dataset(algorithm, tmpdir)``: a draft's config, and the samples."""

    def build(algorithm, tmpdir, **changes):
        values = {"tmpdir": tmpdir, "cpdir": tmp_path / "cp", "noise": False}
        settings, train = settings_of(fixture, algorithm, **{**values, **changes}), TRAIN[algorithm][0]
        config = train.build(settings).config
        return config, train.build_dataset(settings, config)

    return build


def test_a_run_on_arrow_data_is_the_run_on_records(both, run_to_the_end, tmp_path, algorithm):
    ours = run_to_the_end(algorithm, tmp_path / "a", tmpdir=both)
    theirs = run_to_the_end(algorithm, tmp_path / "b", tmpdir=tmp_path / algorithm)
    assert [name for name in ours.differs_from(theirs) if name != "state"] == []
    named = json.loads((tmp_path / "a" / f"{PREFIX[algorithm]}1" / "config.json").read_text())
    assert named.get("eagle_aux_hidden_state_layer_ids", list(LAYERS)) == list(LAYERS)


def _cut(file):
    file.write_bytes(file.read_bytes()[:50])


def _changed(**changes):
    """Tensors of a file, put through functions."""

    def change(file):
        tensors = load_file(file)
        save_file(tensors | {name: act(tensors[name]).contiguous() for name, act in changes.items()}, file)

    return change


BAD = {
    "float8": (_changed(hidden_states=lambda states: states.to(torch.float8_e4m3fn)), "torch.float8_e4m3fn"),
    "missing": (lambda file: file.unlink(), "no such file"),
    "cut": (_cut, ""),
    "other ids": (_changed(token_ids=lambda ids: ids + 1), "do not match"),
    "another width": (_changed(hidden_states=lambda states: states[..., :-1]), "width 31"),
}


@pytest.mark.parametrize("damage", BAD)
def test_bad_hidden_states_are_refused(both, dataset, refuses, damage):
    (spoil, found), (_, ours) = BAD[damage], dataset("eagle3", both)
    file = both / "hidden_states" / "hs_1.safetensors"
    spoil(file)
    with refuses(file, "token_ids" if found == "do not match" else "hidden_states", found, ""):
        ours[1]


COLUMNS = [
    ("loss_mask", ["0011"] * 4, "loss_mask", "str"),
    ("loss_mask", [[0.5] * 9] * 4, "loss_mask", "values other than 0 and 1"),
    ("input_ids", [[[1, 2]]] * 4, "token_ids", ""),
]


@pytest.mark.parametrize(("column", "values", "field", "found"), COLUMNS)
def test_columns_of_something_else_are_refused(both, dataset, refuses, tmp_path, column, values, field, found):
    rows = load_from_disk(both).remove_columns(column)
    rows = rows.add_column(column, values).with_format("torch")
    rows.save_to_disk(tmp_path / "other")
    shutil.copytree(both / "hidden_states", tmp_path / "other" / "hidden_states")
    _, ours = dataset("eagle3", tmp_path / "other")
    with refuses(tmp_path / "other" / "hidden_states" / "hs_0.safetensors", field, found, ""):
        ours[0]


def _names_no_file(folder):
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "gone.arrow"}]}))


def _leads_out_of_the_file(folder):
    """Arrow ends the process where somebody reads by such an offset."""
    (file,) = folder.glob("*.arrow")
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_stream(source).read_all().combine_chunks()
    ids = table["input_ids"].chunk(0)
    offsets = np.array(ids.offsets)
    offsets[1] += 10**6
    wrong = pa.Array.from_buffers(ids.type, len(ids), [None, pa.py_buffer(offsets)], children=[ids.values])
    table = table.set_column(table.column_names.index("input_ids"), table.schema.field("input_ids"), wrong)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)


@pytest.mark.parametrize("damage", [_names_no_file, _leads_out_of_the_file])
def test_a_damaged_data_set_is_refused(both, dataset, refuses, damage):
    damage(both)
    with refuses(both, "data", "", "an arrow data set that Speculators prepared"):
        dataset("eagle3", both)


def test_online_training_does_not_read_arrow(both, dataset, refuses):
    with refuses(both, "--online", "an arrow data set", "a directory of records"):
        dataset("eagle3", both, online=True)
