"""Eagle3's entry point: what it writes, what decides a run, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from speculators import SpeculatorModel

from ports.eagle3 import train as eagle3
from ports.training.runs import warn_of_longer


def metrics(cpdir):
    return [json.loads(line) for line in (cpdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def change_draft(fixture):
    """Other values in the draft's config."""
    file = fixture / "draft_eagle3.json"
    return lambda **values: file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_main_trains_and_writes_checkpoints_with_the_tokenizer(flags, fixture, tmp_path, capsys):
    (fixture / "verifier" / "tokenizer.json").write_text("{}")
    assert eagle3.main(flags(epoch=1)) == 0
    said = capsys.readouterr().out.splitlines()
    assert "training on 6 examples total" in said
    assert [line.split(",")[0] for line in said if line.startswith("Epoch")] == ["Epoch [1/1]", "Epoch [2/1]"]
    for name in ("model0", "model1"):
        folder = tmp_path / "checkpoints" / name
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    draft = SpeculatorModel.from_pretrained(tmp_path / "checkpoints" / "model1")
    assert all(bool(value.isfinite().all()) for value in draft.state_dict().values() if value.is_floating_point())


@pytest.mark.parametrize(("length", "said"), [({"max_len": 513}, 1), ({"max_len": 512}, 0), ({}, 0)])
def test_a_length_beyond_the_verifier_s_positions_is_said(settings, recwarn, length, said):
    warn_of_longer(settings(**length))
    assert [str(warning.message) for warning in recwarn] == ["--max_len 513: the verifier has 512 positions"] * said


def test_the_seed_decides_the_run(flags, tmp_path, reset_accelerator):
    def losses(seed):
        reset_accelerator()
        torch.manual_seed(99)
        assert eagle3.main(flags(seed=seed, overwrite=None)) == 0
        return metrics(tmp_path / "checkpoints")

    first = losses(3)
    assert losses(3) == first
    assert losses(4) != first


def test_two_layers_train_in_the_chain_only(flags, change_draft, capsys):
    change_draft(num_hidden_layers=2)
    assert eagle3.main(flags()) == 2
    assert "num_hidden_layers: found 2, expected 1" in capsys.readouterr().err
    assert eagle3.main(flags(ttt_alignment="chain")) == 0


def test_a_draft_that_says_the_whole_vocabulary(flags, change_draft, fixture, tmp_path):
    change_draft(draft_vocab_size=61)
    np.save(fixture / "t2d.npy", np.ones(61, bool))
    np.save(fixture / "d2t.npy", np.zeros(61, np.int64))
    assert eagle3.main(flags()) == 0
    assert load_file(tmp_path / "checkpoints" / "model0" / "model.safetensors")["lm_head.weight"].shape == (61, 32)


BAD = [
    ({"basepath": "/nowhere/verifier"}, "", "/nowhere/verifier: basepath"),
    ({"configpath": "/nowhere/draft.json"}, "", "/nowhere/draft.json: configpath"),
    ({"tmpdir": "/nowhere/data"}, "", "/nowhere/data: tmpdir"),
    ({"t2d": "/nowhere/t2d.npy"}, "", "/nowhere/t2d.npy: t2d"),
    ({"ckpt_path": "/nowhere/model0"}, "", "ckpt_path"),
    ({"lr": "fast"}, "", "lr"),
    ({"bs": 7}, "", "records"),
    ({"config": "/nowhere/run.yaml"}, "", "/nowhere/run.yaml: --config"),
    ({}, "verifier/model-00001-of-00002.safetensors", "weight_map"),
    ({"num_workers": 1}, "data_eagle3/data_0.ckpt", "data_0.ckpt: file"),
]


@pytest.mark.parametrize(("changes", "emptied", "field"), BAD)
def test_bad_input_ends_with_status_2_and_a_sentence(flags, fixture, tmp_path, capsys, changes, emptied, field):
    if emptied.endswith("ckpt"):
        (fixture / emptied).write_bytes(b"")
    elif emptied:
        (fixture / emptied).unlink()
    assert eagle3.main(flags(**changes)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert f"{field}: found " in said
    assert ", expected " in said
    assert "num_workers" in changes or not (tmp_path / "checkpoints").exists()
