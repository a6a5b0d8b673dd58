"""Mutated files of numbers that trainers read: a clear refusal or a correct result, nothing else.

Draft configs, vocabulary maps, settings and command lines are :mod:`tests.fuzz`'s.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ports.eagle3 import train as eagle3
from ports.training.checkpoint import seal
from ports.training.records import read_record
from ports.training.resume import choose
from ports.training.saving import load_weights, save_draft
from ports.verifier.weights import check_weights_present
from tests.mutants import COUNT, try_all
from tests.ports.training.conftest import bits
from tests.ports.training.test_records import as_safetensors


@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_mutant_records(fixture, tmp_path, form):
    if form == "safetensors":
        as_safetensors(fixture)
    file = fixture / "data_eagle3" / f"data_0.{form}"
    names = set(read_record(file, {"hidden_state": 96, "target": 32}, 61))

    def read():
        record = read_record(file, {"hidden_state": 96, "target": 32}, 61)
        assert set(record) == names
        length = len(record["input_ids"])
        assert record["hidden_state"].shape == (length, 96)
        assert bool(record["hidden_state"].isfinite().all())

    assert try_all(file, read, tmp_path).refused > COUNT // 3


SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


@pytest.mark.parametrize("name", ["model.safetensors.index.json", *SHARDS])
def test_mutant_verifier_weights(fixture, settings, tmp_path, name):
    """What is accepted is what the files say: no hash could tell another number from the right one."""

    def read():
        check_weights_present(str(fixture / "verifier"))
        draft = eagle3.build(settings())
        stored = {key: value for shard in SHARDS for key, value in load_file(fixture / "verifier" / shard).items()}
        kept = stored["lm_head.weight"][draft.t2d]
        assert torch.equal(bits(draft.verifier_lm_head.weight), bits(kept))
        assert torch.equal(bits(draft.embed_tokens.weight), bits(stored["model.embed_tokens.weight"]))

    assert try_all(fixture / "verifier" / name, read, tmp_path).refused


def test_mutant_checkpoint_weights(lively_draft, tmp_path):
    draft = lively_draft()
    folder = save_draft(draft, tmp_path / "model0")
    before = {name: value.clone() for name, value in draft.state_dict().items()}

    def read():
        draft.load_state_dict(before)
        try:
            load_weights(draft, folder)
        except ValueError:
            same = all(torch.equal(value, before[name]) for name, value in draft.state_dict().items())
            assert same, "a partial load"
            raise

    assert try_all(folder / "model.safetensors", read, tmp_path).refused > COUNT // 3


STATE = ["manifest.json", "state.json", "optimizer.safetensors", "generators.safetensors"]


@pytest.mark.parametrize("name", [*STATE, "../config.json", "../model.safetensors"])
def test_mutant_training_states_by_auto(run_until, start_run, settings, tmp_path, name):
    """Another byte is another hash: never picked, whatever it says."""
    folder = run_until("eagle3", tmp_path / "cp", 2)
    chosen = settings(cpdir=tmp_path / "cp", ckpt_path=Path("auto"))
    file = (folder / "training_state" / name).resolve()
    whole = file.read_bytes()

    def read():
        checkpoint = choose(chosen)
        assert checkpoint is not None
        assert file.read_bytes() == whole or name == "manifest.json"

    assert try_all(file, read, tmp_path).refused > COUNT // 2


@pytest.mark.parametrize("name", STATE[1:])
def test_mutant_training_states_that_are_sealed_again(run_until, start_run, tmp_path, name, capsys):
    """Whoever writes the manifest too reaches the readers behind it: they refuse what does not fit."""
    folder = run_until("eagle3", tmp_path / "cp", 2)

    def prepare():
        (folder / "training_state" / "manifest.json").unlink()
        seal(folder)

    def read():
        loop = start_run("eagle3", tmp_path / "cp", ckpt_path=folder, max_steps=5)
        next(loop.optimizer_steps(), None)

    file = folder / "training_state" / name
    assert try_all(file, read, tmp_path, COUNT, prepare).refused > COUNT // 3
