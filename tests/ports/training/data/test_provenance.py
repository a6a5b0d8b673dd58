"""Records that say where they come from train only the draft they belong to."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ports.eagle3 import train as eagle3
from ports.generate.records import write_record
from ports.generate.vocabulary import VocabularySettings, write_vocabulary
from ports.training.data.record_info import RecordInfo, parse_info
from ports.training.data.records import list_records
from ports.training.verifier import verifier_fingerprint


@pytest.fixture
def convert(fixture):
    """The fixture's pickles as safetensors of the given kind."""

    def go(algorithm="eagle3", kind=None, **changes):
        folder = fixture / f"data_{algorithm}"
        for row, file in enumerate(list_records(folder)):
            values = {
                "algorithm": kind or algorithm,
                "verifier": verifier_fingerprint(str(fixture / "verifier")),
                "tokenizer": "none",
                "feature_layers": (3, 5, 6) if algorithm == "eagle3" else (),
                "loss_mask": "exact",
                "chat_template": "plain",
                "row": row,
            }
            record = torch.load(file, weights_only=True)
            write_record(file.with_suffix(".safetensors"), record, RecordInfo(**{**values, **changes}))
            file.unlink()
        return folder

    return go


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_records_of_either_form_train_alike(run_to_the_end, convert, tmp_path, algorithm) -> None:
    pickles = run_to_the_end(algorithm, tmp_path / "a")
    convert(algorithm)
    safetensors = run_to_the_end(algorithm, tmp_path / "b")
    assert [name for name in safetensors.differs_from(pickles) if name != "state"] == []


def test_a_config_that_names_no_layers_takes_those_of_the_records(convert, settings) -> None:
    convert(feature_layers=(1, 4, 6))
    assert eagle3.build(settings()).config.eagle_aux_hidden_state_layer_ids == [1, 4, 6]


def test_a_config_that_names_other_layers_is_refused(convert, settings, fixture, refuses) -> None:
    folder = convert()
    native = fixture / "native"
    eagle3.build(settings()).config.save_pretrained(native)
    content = json.loads((native / "config.json").read_text()) | {"eagle_aux_hidden_state_layer_ids": [2, 4, 5]}
    (native / "config.json").write_text(json.dumps(content))
    changed = settings(configpath=str(native))
    draft = eagle3.build(changed)
    with refuses(folder, "feature_layers", "[3, 5, 6]", "[2, 4, 5], the draft config's"):
        eagle3.build_dataset(changed, draft.config)


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_another_verifier_is_refused(start_run, convert, fixture, tmp_path, refuses, algorithm) -> None:
    folder = convert(algorithm)
    shard = sorted((fixture / "verifier").glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    tensors["model.norm.weight"] += 1e-3
    save_file(tensors, shard, {"format": "pt"})
    with refuses(folder, "verifier", "fingerprint", "the verifier's at --basepath"):
        start_run(algorithm, tmp_path / "cp")


def test_records_of_the_other_algorithm_are_refused(start_run, convert, tmp_path, refuses) -> None:
    folder = convert("hass", kind="eagle3")
    with refuses(folder, "algorithm", "records for eagle3", "for hass"):
        start_run("hass", tmp_path / "cp")


OTHERS = [
    ("algorithm", "hass"),
    ("verifier", "ffffffffffffffff"),
    ("tokenizer", "another"),
    ("loss_mask", "prototype"),
    ("feature_layers", (2, 4, 5)),
]


@pytest.mark.parametrize(("field", "value"), OTHERS)
def test_one_record_of_another_kind_among_many_is_met(start_run, convert, tmp_path, refuses, field, value) -> None:
    folder = add_another(convert(), **{field: value})
    loop = start_run("eagle3", tmp_path / "cp")
    with refuses(folder / "data_99.safetensors", field, str(list(value)) if field == "feature_layers" else value, ""):
        loop.run()


@pytest.mark.parametrize(("field", "value"), [("tokenizer", "another"), ("loss_mask", "prototype")])
def test_online_and_vocabulary_too_want_one_kind_of_ids_and_masks(convert, settings, refuses, field, value) -> None:
    folder = add_another(convert(), **{field: value})
    online = settings(online=True)
    dataset = eagle3.build_dataset(online, eagle3.build(online).config)
    with refuses(folder / "data_99.safetensors", field, value, ""):
        dataset[len(dataset) - 1]
    with refuses(folder / "data_99.safetensors", field, value, ""):
        write_vocabulary(VocabularySettings(tmpdir=folder, basepath=online.basepath, draft_vocab_size=8))


def add_another(folder, **changes):
    """One more record, which says something else about itself than the others."""
    first = list_records(folder)[0]
    info = parse_info(first, safe_open(first, "pt").metadata())
    write_record(folder / "data_99.safetensors", load_file(first), info.model_copy(update=changes))
    return folder
