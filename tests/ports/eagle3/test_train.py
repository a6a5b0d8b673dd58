"""Eagle3's entry point, in this process and in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from speculators import SpeculatorModel

from ports.eagle3 import train as eagle3
from ports.training.runs import warn_of_longer

ROOT = Path(__file__).parents[3]


def metrics(cpdir):
    return [json.loads(line) for line in (cpdir / "metrics.jsonl").read_text().splitlines()]


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


def test_a_new_run_starts_from_the_weights_of_a_checkpoint(flags, tmp_path, reset_accelerator):
    assert eagle3.main(flags()) == 0
    reset_accelerator()
    cold = metrics(tmp_path / "checkpoints")
    checkpoint = tmp_path / "checkpoints" / "model0"
    weights = {"ckpt_path": checkpoint, "weights_only": None, "configpath": checkpoint}
    assert eagle3.main(flags(**weights, cpdir=tmp_path / "again", lr=1e-9)) == 0
    assert metrics(tmp_path / "again")[0]["train/loss"] < cold[0]["train/loss"] * 1.5
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "again" / "model0"))
    assert all(torch.allclose(after[name], value, atol=1e-7) for name, value in before.items())


BAD = [
    ({"basepath": "/nowhere/verifier"}, "basepath"),
    ({"configpath": "/nowhere/draft.json"}, "configpath"),
    ({"tmpdir": "/nowhere/data"}, "tmpdir"),
    ({"t2d": "/nowhere/t2d.npy"}, "t2d"),
    ({"ckpt_path": "/nowhere/model0"}, "ckpt_path"),
    ({"lr": "fast"}, "lr"),
    ({"bs": 7}, "records"),
    ({"config": "/nowhere/run.yaml"}, "--config"),
]


@pytest.mark.parametrize(("changes", "field"), BAD)
def test_bad_input_ends_with_status_2_and_a_sentence(flags, capsys, changes, field):
    assert eagle3.main(flags(**changes)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert f": {field}: found " in said
    assert ", expected " in said


def test_bad_input_in_a_loader_process_does_too(flags, fixture, capsys):
    path = fixture / "data_eagle3" / "data_0.ckpt"
    path.write_bytes(b"")
    assert eagle3.main(flags(num_workers=1)) == 2
    assert f"error: {path}: file: found " in capsys.readouterr().err


def test_a_verifier_without_its_shard_is_refused_before_anything_is_written(flags, fixture, tmp_path, capsys):
    (fixture / "verifier" / "model-00001-of-00002.safetensors").unlink()
    assert eagle3.main(flags()) == 2
    assert "model-00001-of-00002.safetensors, which does not exist" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_two_layers_train_in_the_chain_only(flags, fixture, capsys):
    file = fixture / "draft_eagle3.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 2}))
    assert eagle3.main(flags()) == 2
    assert "num_hidden_layers: found 2, expected 1" in capsys.readouterr().err
    assert eagle3.main(flags(ttt_alignment="chain")) == 0


def test_a_draft_that_says_the_whole_vocabulary(flags, fixture, tmp_path):
    import numpy as np

    file = fixture / "draft_eagle3.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "draft_vocab_size": 61}))
    np.save(fixture / "t2d.npy", np.ones(61, bool))
    np.save(fixture / "d2t.npy", np.zeros(61, np.int64))
    assert eagle3.main(flags()) == 0
    assert load_file(tmp_path / "checkpoints" / "model0" / "model.safetensors")["lm_head.weight"].shape == (61, 32)


def test_as_a_module_on_bad_input(flags):
    command = [sys.executable, "-m", "ports.eagle3.train", *flags(tmpdir="/nowhere")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1] == (
        "error: /nowhere: tmpdir: found no such directory, expected a directory of records"
    )
