"""Either entry point: what it writes and logs, what decides a run, how gradients are clipped, and what it refuses."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from speculators import SpeculatorModel

from ports.errors import InputError
from ports.evaluate.drafter import open_draft
from ports.training.saving import load_weights
from tests.ports.conftest import TRAIN, edit
from tests.ports.training.conftest import PREFIX, metrics

HASS_ALONE = {"train/ploss", "train/topkloss"}
LOGGED = {"step", "train/lr", "train/loss", "train/acc"} | {f"train/top_{k}_acc" for k in (1, 2, 3)}


@pytest.fixture(params=TRAIN)
def port(request):
    return request.param


@pytest.fixture
def main(port):
    return TRAIN[port][0].main


def only(port):
    return pytest.mark.parametrize("port", [port], indirect=True)


def test_main_trains_logs_and_writes_checkpoints_with_the_tokenizer(main, port, flags, fixture, tmp_path, capsys):
    (fixture / "verifier" / "tokenizer.json").write_text("{}")
    assert main(flags(epoch=1, lr=1e-3, forward_num_total=2)) == 0
    said, warned = (text.splitlines() for text in capsys.readouterr())
    assert "training on 6 examples total" in said
    assert any(line.startswith(f"the verifier's place {fixture / 'verifier'} is this machine's") for line in warned)
    assert [line.split(",")[0] for line in said if line.startswith("Epoch")] == ["Epoch [1/1]", "Epoch [2/1]"]
    folders = [tmp_path / "checkpoints" / f"{PREFIX[port]}{number}" for number in (0, 1)]
    assert warned[-1] == f"the draft is {folders[1]}; speculator evaluate {folders[1]} --prompts FILE measures it"
    with pytest.raises(InputError, match=f"one of its checkpoints, the newest is {folders[1]}"):
        open_draft(folders[1].parent)
    for folder in folders:
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    draft = SpeculatorModel.from_pretrained(folders[1])
    assert all(bool(value.isfinite().all()) for value in draft.state_dict().values() if value.is_floating_point())
    lines = metrics(tmp_path / "checkpoints")
    assert len(lines) == 6
    assert all(line.keys() == LOGGED | (HASS_ALONE if port == "hass" else set()) for line in lines)
    assert port == "eagle3" or all(0 < line["train/topkloss"] < line["train/ploss"] for line in lines)


def test_the_seed_decides_the_run(main, flags, tmp_path, reset_accelerator):
    def losses(seed):
        reset_accelerator()
        torch.manual_seed(99)
        assert main(flags(seed=seed, overwrite=None)) == 0
        return metrics(tmp_path / "checkpoints")

    first = losses(3)
    assert losses(3) == first
    assert losses(4) != first


@only("eagle3")
def test_a_draft_that_says_the_whole_vocabulary(main, flags, fixture, tmp_path):
    edit(fixture / "draft_eagle3.json", draft_vocab_size=61)
    np.save(fixture / "t2d.npy", np.ones(61, bool))
    np.save(fixture / "d2t.npy", np.zeros(61, np.int64))
    assert main(flags()) == 0
    assert load_file(tmp_path / "checkpoints" / "model0" / "model.safetensors")["lm_head.weight"].shape == (61, 32)


@only("hass")
def test_deepspeed_is_refused_before_a_run_is_written_over(main, flags, tmp_path, monkeypatch, capsys):
    assert main(flags(max_steps=1)) == 0
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert main(flags(overwrite=None)) == 2
    assert "accelerate launch: distributed_type: found DEEPSPEED, expected one process" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "state_0").is_dir()


@only("hass")
@pytest.mark.parametrize("extra", [[], ["embed_tokens.weight"]], ids=["native", "the prototype's"])
def test_weights_of_a_native_and_of_a_prototype_checkpoint(settings, lively_draft, tmp_path, extra):
    trained = lively_draft()
    names = [name for name, value in trained.named_parameters() if value.requires_grad] + extra
    save_file({name: trained.get_parameter(name).detach() for name in names}, tmp_path / "model.safetensors")
    draft = TRAIN["hass"][0].build(settings())
    load_weights(draft, tmp_path)
    assert all(torch.equal(value, trained.get_parameter(name)) for name, value in draft.named_parameters())


REFUSED = [
    ({"topk": 62}, "command line: --topk: found 62, expected at most 61"),
    ({"ckpt_path": "/nowhere"}, "/nowhere/model.safetensors: resume: found no such file, expected a Speculators "),
]


@only("hass")
@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_a_flag_that_names_nothing_is_refused_and_leaves_nothing(main, flags, tmp_path, capsys, changes, said):
    assert main(flags(**changes)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("length", "said"), [({"max_len": 513}, 1), ({"max_len": 512}, 0), ({}, 0)])
def test_a_length_beyond_the_verifier_s_positions_is_said(start_run, tmp_path, recwarn, length, said):
    start_run("eagle3", tmp_path / "run", **length)
    found = [str(warning.message) for warning in recwarn if "--max-length" in str(warning.message)]
    assert found == ["--max-length 513: the verifier has 512 positions"] * said
