"""The command: what it writes, logs and refuses."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from speculators import SpeculatorModel

from ports.hass import train as hass
from ports.training.observer import Observer
from ports.training.saving import load_weights

LOGGED = {"step", "train/lr", "train/ploss", "train/topkloss", "train/loss", "train/acc"} | {
    f"train/top_{k}_acc" for k in (1, 2, 3)
}


def test_a_run_saves_a_checkpoint_after_every_pass_and_logs_every_batch(flags, tmp_path, capsys):
    assert hass.main(flags(epoch=1, lr=1e-3, forward_num_total=2)) == 0
    folders = sorted(path.name for path in (tmp_path / "checkpoints").glob("state_*"))
    assert folders == ["state_0", "state_1"]
    lines = [json.loads(line) for line in (tmp_path / "checkpoints" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all(line.keys() == LOGGED for line in lines)
    assert all(0 < line["train/topkloss"] < line["train/ploss"] for line in lines)
    printed = capsys.readouterr().out
    assert "Epoch [2/1], Loss: " in printed
    assert isinstance(SpeculatorModel.from_pretrained(tmp_path / "checkpoints" / "state_1"), hass.HassDraftModel)


def test_training_moves_what_trains_and_leaves_the_verifier_alone(settings):
    chosen = settings(forward_num_total=3)
    draft = hass.build(chosen)
    before = {name: value.detach().clone() for name, value in draft.named_parameters()}
    hass.finish(hass.start(chosen, draft, hass.build_dataset(chosen, draft.config)))
    moved = {name for name, value in draft.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(before) - {"embed_tokens.weight", "lm_head.weight"}


class Stop(Observer):
    """Keeps the gradients of the first step before and after clipping, and the norm that was logged."""

    def gradients(self, micro_batch, objective):
        self.raw = {
            name: value.grad.clone() for name, value in objective.draft.named_parameters() if value.requires_grad
        }

    def stepped(self, record, objective):
        self.norm = record.grad_norm
        self.clipped = {name: objective.draft.get_parameter(name).grad for name in self.raw}


def test_gradients_are_clipped_element_by_element(settings, lively_draft):
    chosen, seen = settings(max_steps=1), Stop()
    draft = lively_draft()
    hass.finish(hass.start(chosen, draft, hass.build_dataset(chosen, draft.config), observer=seen))
    assert max(value.abs().max() for value in seen.raw.values()) > 0.5
    for name, value in seen.raw.items():
        assert torch.equal(seen.clipped[name], value.clamp(-0.5, 0.5)), name
    total = sum(value.square().sum() for value in seen.raw.values()) ** 0.5
    assert seen.norm == pytest.approx(total.item(), rel=1e-5)


def test_deepspeed_is_refused_before_a_run_is_written_over(flags, tmp_path, monkeypatch, capsys):
    assert hass.main(flags(max_steps=1)) == 0
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert hass.main(flags(overwrite=None)) == 2
    assert "accelerate launch: distributed_type: found DEEPSPEED, expected one process" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "state_0").is_dir()


def test_two_layers_train_in_chain_alignment(flags, two_layers, tmp_path):
    assert hass.main(flags(ttt_alignment="chain", max_steps=2)) == 0
    saved = load_file(tmp_path / "checkpoints" / "state_0" / "model.safetensors")
    assert "layers.1.input_layernorm.weight" in saved
    assert "layers.0.input_layernorm.weight" not in saved


def test_weights_of_a_native_and_of_a_prototype_checkpoint(settings, lively_draft, tmp_path):
    trained = lively_draft()
    for extra in ([], ["embed_tokens.weight"]):
        folder = tmp_path / f"state_{len(extra)}"
        folder.mkdir()
        names = [name for name, value in trained.named_parameters() if value.requires_grad] + extra
        save_file({name: trained.get_parameter(name).detach() for name in names}, folder / "model.safetensors")
        draft = hass.build(settings())
        load_weights(draft, folder)
        assert all(torch.equal(value, trained.get_parameter(name)) for name, value in draft.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topk": 62}, "command line: --topk: found 62, expected at most 61"),
        ({"forward_num_total": 0}, "forward_num_total: found '0'"),
    ],
)
def test_bad_input_exits_with_two_and_says_what_is_wrong(flags, capsys, changes, message):
    assert hass.main(flags(**changes)) == 2
    assert message in capsys.readouterr().err


def test_eagle3_records_are_refused(flags, fixture, capsys):
    assert hass.main(flags(tmpdir=fixture / "data_eagle3")) == 2
    error = capsys.readouterr().err
    assert re.search(r"hidden_state: found torch.float32 \((\d+), 96\), expected floating point \(\1, 32\)", error), (
        error
    )
