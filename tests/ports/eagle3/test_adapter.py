"""The adapter, driven the way the prototype's script drives its model, against the port's own unrolling."""

import json

import pytest
import torch
from safetensors.torch import load_file
from speculators import SpeculatorModel

from parity.fixtures import RECORDINGS
from ports.eagle3 import model as eagle3_model
from ports.eagle3 import to_native
from ports.eagle3.adapter import EConfig, Model
from ports.eagle3.model import unroll
from ports.eagle3.objective import Eagle3Objective
from ports.eagle3.train import build
from ports.training.alignment import Alignment
from ports.training.attention import attention_name


@pytest.fixture
def adapter(fixture, monkeypatch):
    """The adapter's model with the lively weights of the fixture's draft."""
    monkeypatch.chdir(fixture)

    def make():
        return Model(EConfig.from_pretrained("draft_eagle3.json"), load_emb=True, path="verifier")

    return make


@pytest.fixture
def lively(adapter, lively_draft):
    model, draft = adapter(), lively_draft()
    model.draft.load_state_dict(draft.state_dict())
    return model, draft


def step_by_step(model, batch, steps):
    """Hidden states, logits and losses of the TTT steps, each in its own call with the history so far."""
    target = torch.softmax(batch["target"] @ model.draft.verifier_lm_head.weight.detach().T, dim=-1)
    hidden, history, seen = model.fc(batch["features"]), [], []
    mask = batch["loss_mask"][..., None]
    for _ in range(steps):
        out = model(hidden, batch["input_ids"], batch["attention_mask"], history)
        logits = model.lm_head(model.lm_head_layernorm(out))
        divergence = torch.nn.functional.kl_div(torch.log_softmax(logits, 2), target, reduction="none")
        seen.append((out, logits, (divergence * mask).sum() / (mask.sum() + 1e-5)))
        history.append(hidden)
        hidden = torch.cat([hidden[:, :1], out[:, :-1]], dim=1)
    return seen


def error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_logits_losses_and_every_gradient_are_the_ports(lively, batch_of, steps, monkeypatch):
    """The port projects whole, as the adapter does, so that only rounding of equal sums is left between them."""
    monkeypatch.setattr(eagle3_model, "can_share", lambda layer: False)
    model, draft = lively
    batch = batch_of(0, 1)
    real = batch["attention_mask"].bool()
    assert not bool(real.all())
    outcome, seen = Eagle3Objective(draft, steps)(batch), step_by_step(model, batch, steps)
    for step, loss, (hidden, logits, own_loss) in zip(outcome.steps, outcome.step_losses, seen, strict=True):
        assert error(hidden[real], step.hidden[real]) <= 1e-6
        assert error(logits[real], step.logits[real]) <= 1e-6
        assert error(own_loss, loss) <= 1e-6
    outcome.backward_loss.backward()
    sum(loss for *_, loss in seen).backward()
    wanted = {name: value.grad for name, value in draft.named_parameters() if value.grad is not None}
    found = {to_native(name): value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert set(found) == set(wanted)
    assert len(found) == 13
    for name, value in wanted.items():
        assert error(found[name], value) <= 1e-6, name


def test_parameters_go_by_the_prototypes_names(adapter):
    model = adapter()
    recorded = {
        name[5:] for name in load_file(RECORDINGS / "initial_eagle3_fp32.safetensors") if name.startswith("init.")
    }
    names = [name for name, _ in model.named_parameters()]
    assert set(names) == recorded | {"embed_tokens.weight"} == set(model.state_dict())
    assert len(names) == len(set(names))
    drafts = {id(value) for name, value in model.draft.named_parameters() if not name.startswith("verifier_")}
    assert {id(value) for value in model.parameters()} == drafts
    assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["embed_tokens.weight"]


def test_save_native_writes_what_speculators_reads(lively, batch_of, fixture, tmp_path):
    model, batch = lively[0], batch_of(0, 1)
    (fixture / "verifier" / "tokenizer.json").write_text("{}")
    folder = model.save_native(tmp_path / "native")
    assert (folder / "tokenizer.json").is_file()
    back = SpeculatorModel.from_pretrained(folder)
    back.config.transformer_layer_config._attn_implementation = attention_name(Alignment.PROTOTYPE)
    own, read = (
        unroll(draft, batch["features"], batch["input_ids"], batch["attention_mask"], 3)
        for draft in (model.draft, back)
    )
    assert all(torch.equal(one.logits, other.logits) for one, other in zip(own, read, strict=True))
    assert all(torch.equal(back.state_dict()[to_native(name)], value) for name, value in model.state_dict().items())


def test_it_runs_in_eval_mode_and_without_history(lively, batch_of):
    model, _ = lively
    batch = batch_of(0)
    with torch.no_grad():
        trained = model.train()(batch["features"], batch["input_ids"], batch["attention_mask"])
        assert torch.equal(model.eval()(batch["features"], batch["input_ids"], batch["attention_mask"]), trained)


def test_it_runs_cast_to_bfloat16_with_float32_rotary_frequencies(lively, batch_of):
    model, _ = lively
    batch = batch_of(0, 1)
    exact = step_by_step(model, batch, 3)[2][1]
    frequencies = model.draft.rotary_emb.inv_freq.clone()
    model.bfloat16()
    assert torch.equal(model.draft.rotary_emb.inv_freq, frequencies)
    model.draft.verifier_lm_head.float()
    logits = step_by_step(model, batch, 3)[2][1]
    assert logits.dtype is torch.bfloat16
    real = batch["attention_mask"].bool()
    assert error(logits[real].float(), exact[real]) < 0.05


def test_under_autocast_it_takes_the_scripts_bfloat16_features(lively, batch_of):
    model, _ = lively
    batch = batch_of(0)
    hidden = model.fc(batch["features"].bfloat16())  # outside of autocast, as the script does
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(hidden, batch["input_ids"], batch["attention_mask"], [hidden])
    assert model.lm_head(model.lm_head_layernorm(out)).dtype is torch.float32


def test_it_starts_as_the_port_does(adapter, settings):
    torch.manual_seed(3)
    model = adapter()
    torch.manual_seed(3)
    draft = build(settings())
    for name, value in draft.state_dict().items():
        assert torch.equal(model.draft.state_dict()[name], value), name


def test_what_could_not_be_served_is_refused(refuses, adapter, fixture):
    config, expected = EConfig.from_pretrained(fixture / "draft_eagle3.json"), "a verifier and its embedding"
    with refuses("draft_eagle3.json", "path, load_emb", "(None, True)", expected):
        Model(config)
    with refuses("draft_eagle3.json", "path, load_emb", "False", expected):
        Model(config, load_emb=False, path=str(fixture / "verifier"))
    with refuses("no.json", "configpath", "no such file", "a draft config"):
        EConfig.from_pretrained("no.json")
    (fixture / "d2t.npy").unlink()
    with refuses("d2t.npy", "d2t", "No such file", "a .npy array without pickled objects"):
        adapter()


def test_a_draft_of_another_architecture_is_refused(lively, adapter, fixture, refuses):
    model, _ = lively
    folder = model.save_native(fixture / "native")
    config = json.loads((folder / "config.json").read_text())
    config["transformer_layer_config"]["model_type"] = "qwen3"
    (folder / "config.json").write_text(json.dumps(config))
    with refuses(folder, "model_type", "qwen3", "llama, the prototype's"):
        Model(EConfig.from_pretrained(folder), path="verifier")
    config["transformer_layer_config"]["model_type"] = "llama"
    (folder / "config.json").write_text(json.dumps(config))
    assert Model(EConfig.from_pretrained(folder), path="verifier").fc.weight.shape == (32, 96)
