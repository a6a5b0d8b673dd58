"""The draft's vocabulary from records, and its hash in data, config and checkpoint."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from speculators import SpeculatorModel

from ports.eagle3 import train as eagle3
from ports.generate.vocabulary import covering_size
from ports.training.records import list_records, read_record
from ports.training.runs import recorded_layers
from ports.training.vocabulary import load_vocabulary_map, read_vocabulary_file
from tests.commands import main_of
from tests.ports.conftest import edit


@pytest.fixture
def choose(fixture):
    def go(output, *flags):
        values = ["--data", str(fixture / "data_eagle3"), "--verifier", str(fixture / "verifier")]
        return main_of("vocabulary")([*values, "--out", str(output), *flags])

    return go


def test_a_size_that_nobody_names_covers_what_is_said():
    """Of 9,000 tokens that are equally frequent 8,192 are too small a share; a small vocabulary is whole."""
    counts = Counter(range(9000))
    assert (covering_size(counts, 61), covering_size(counts, 10**5)) == (61, 16384)
    assert covering_size(counts + Counter({0: 10**6}), 10**5) == 8192


@pytest.mark.parametrize("counts", ["all", "answers"])
def test_what_speculators_prepared_has_the_map_of_the_same_records(choose, tmp_path, fixture, counts):
    files, prepared = list_records(fixture / "data_eagle3"), tmp_path / "prepared"
    records = [read_record(file, {}, 61) for file in files]
    Dataset.from_dict(
        {name: [each[name].tolist() for each in records] for name in ("input_ids", "loss_mask")}
    ).save_to_disk(prepared)
    size = ("--draft_vocab_size", "23", "--counts", counts)
    assert choose(tmp_path / "records", *size) == choose(tmp_path / "arrow", "--tmpdir", str(prepared), *size) == 0
    for name in ("t2d.npy", "d2t.npy"):
        assert (tmp_path / "records" / name).read_bytes() == (tmp_path / "arrow" / name).read_bytes()
    Dataset.from_dict({"input_ids": [[1, 61]], "loss_mask": [[1, 1]]}).save_to_disk(tmp_path / "other")
    assert choose(tmp_path / "none", "--tmpdir", str(tmp_path / "other"), *size) == 2
    assert not (tmp_path / "none").exists()


def test_layers_that_nobody_named_are_the_verifiers_matter(settings, tmp_path, refuses):
    """Speculators' rule for six layers names one of them twice."""
    Dataset.from_dict({"input_ids": [[1, 2]], "loss_mask": [[1, 1]]}).save_to_disk(tmp_path / "prepared")
    chosen = settings(tmpdir=tmp_path / "prepared")
    edit(Path(chosen.basepath) / "config.json", num_hidden_layers=6)
    with refuses(chosen.basepath, "num_hidden_layers", "6: speculators ([2, 3, 3])", "three different ones"):
        recorded_layers(chosen)


@pytest.mark.parametrize("counts", ["all", "answers"])
def test_the_most_frequent_tokens_are_kept_and_training_reads_them(choose, tmp_path, fixture, counts):
    """Of all tokens or of those in the loss; ties go by id."""
    assert choose(tmp_path / "map", "--draft-config", str(fixture / "draft_eagle3.json"), "--counts", counts) == 0
    content = read_vocabulary_file(tmp_path / "map" / "vocabulary.json")
    loaded = load_vocabulary_map(tmp_path / "map" / "t2d.npy", tmp_path / "map" / "d2t.npy", 61, 23)
    records = [read_record(file, {}, 61) for file in list_records(fixture / "data_eagle3")]
    ids = torch.cat([each["input_ids"][each["loss_mask"].bool() | (counts == "all")] for each in records])
    often = ids.bincount(minlength=61)
    kept = often.argsort(descending=True, stable=True)[:23]
    assert loaded.t2d.nonzero().flatten().tolist() == sorted(kept.tolist())
    assert content.digest == loaded.digest
    assert (content.records, content.draft_vocab_size, content.counts) == (6, 23, counts)
    assert (content.tokens, content.covered) == (len(ids), int(often[kept].sum()))


BAD = [
    (("--draft-vocab-size", "62"), "draft_vocab_size: found 62, expected 1..61"),
    (("--draft-vocab-size", "5", "--draft-config", "x"), "--draft-vocab-size: found 5"),
    (("--draft-config", "hass"), "draft_vocab_size: found None"),
]


@pytest.mark.parametrize(("flags", "said"), BAD)
def test_a_bad_size_is_refused(choose, tmp_path, fixture, capsys, flags, said):
    flags = [str(fixture / "draft_hass.json") if flag == "hass" else flag for flag in flags]
    assert choose(tmp_path / "map", *flags) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "map").exists()


@pytest.fixture
def mapped(choose, fixture, settings):
    """Settings of a run whose data name their map."""
    assert choose(fixture / "data_eagle3", "--draft-vocab-size", "23") == 0
    data = fixture / "data_eagle3"
    return lambda **changes: settings(**{"t2d": data / "t2d.npy", "d2t": data / "d2t.npy", **changes})


def test_the_hash_is_in_data_config_and_checkpoint(mapped, tmp_path, fixture):
    chosen = mapped(max_steps=1)
    digest = read_vocabulary_file(fixture / "data_eagle3" / "vocabulary.json").digest
    draft = eagle3.build(chosen)
    eagle3.finish(eagle3.start(chosen, draft, eagle3.build_dataset(chosen, draft.config)))
    checkpoint = chosen.cpdir / "model0"
    assert json.loads((checkpoint / "config.json").read_text())["draft_vocab_digest"] == digest
    state = json.loads((checkpoint / "training_state" / "state.json").read_text())
    assert state["fingerprint"]["vocabulary"] == digest
    assert set(load_file(checkpoint / "model.safetensors")) >= {"t2d", "d2t"}
    assert SpeculatorModel.from_pretrained(str(checkpoint)).config.draft_vocab_digest == digest


@pytest.fixture
def other(choose, tmp_path):
    """A map of the same size and well formed: only the hash tells that it is another one."""
    assert choose(tmp_path / "other", "--draft-vocab-size", "23", "--counts", "answers") == 0
    return {name: tmp_path / "other" / f"{name}.npy" for name in ("t2d", "d2t")}


def test_another_map_than_the_datas_or_the_configs_is_refused(mapped, fixture, other, refuses, tmp_path):
    assert not np.array_equal(np.load(other["t2d"]), np.load(fixture / "data_eagle3" / "t2d.npy"))
    with refuses(other["t2d"], "vocabulary", "a map with hash", "data_eagle3/vocabulary.json"):
        eagle3.build(mapped(**other))
    eagle3.build(mapped()).config.save_pretrained(tmp_path / "native")
    file = fixture / "data_eagle3" / "vocabulary.json"
    file.unlink()
    with refuses(other["t2d"], "vocabulary", "a map with hash", "native"):
        eagle3.build(mapped(configpath=str(tmp_path / "native"), **other))
    file.write_text("{}")
    with refuses(file, "vocabulary", "", "speculator vocabulary wrote"):
        eagle3.build(mapped())
