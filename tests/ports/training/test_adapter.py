"""The stand-ins for the prototypes' models, driven as the prototypes' scripts drive them, against the ports' own."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from speculators import SpeculatorModel
from torch.nn import functional as F

import ports.eagle3.model
from parity.fixtures import RECORDINGS
from ports.eagle3 import adapter as eagle3
from ports.eagle3 import to_native
from ports.eagle3.objective import Eagle3Objective
from ports.hass import adapter as hass
from ports.hass.objective import HassObjective
from ports.training.objective import next_hidden

KINDS = {
    "eagle3": SimpleNamespace(adapter=eagle3, objective=Eagle3Objective, head="verifier_lm_head", native=to_native),
    "hass": SimpleNamespace(adapter=hass, objective=HassObjective, head="lm_head", native=lambda name: name),
}
LARGEST = 3e-6
"""Of a tensor's largest element: float32 sums in another order."""


@pytest.fixture(params=KINDS)
def port(request):
    return request.param


@pytest.fixture
def make(fixture, port, monkeypatch):
    monkeypatch.chdir(fixture)
    own = KINDS[port].adapter
    return lambda: own.Model(own.EConfig.from_pretrained(f"draft_{port}.json"), load_emb=True, path="verifier")


@pytest.fixture
def lively(make, lively_draft):
    """The adapter's model, and the port's draft with the same weights."""
    model, draft = make(), lively_draft()
    model.draft.load_state_dict(draft.state_dict())
    return model, draft


only_eagle3 = pytest.mark.parametrize("port", ["eagle3"], indirect=True)


def step_by_step(port, model, batch, steps, detach):
    """Hidden states, logits and losses of the TTT steps, each in its own call with the history so far."""
    draft, mask = model.draft, batch["loss_mask"][..., None]
    target = torch.softmax(batch["target"] @ draft.get_submodule(KINDS[port].head).weight.detach().T, dim=-1)
    hidden, history = batch["features"] if port == "hass" else model.fc(batch["features"]), []
    for _ in range(steps):
        out = model(hidden, batch["input_ids"], batch["attention_mask"], history)
        logits = draft.lm_head(model.lm_head_layernorm(out))
        divergence = F.kl_div(torch.log_softmax(logits, 2), target, reduction="none")
        yield out, logits, (divergence * mask).sum() / (mask.sum() + 1e-5)
        history.append(hidden)
        hidden = next_hidden(hidden, out.detach() if detach else out)


def gradients(module, native=lambda name: name):
    return {native(name): value.grad for name, value in module.named_parameters() if value.grad is not None}


def errors(found, wanted):
    """Of a tensor's largest element, by name."""
    assert found.keys() == wanted.keys()
    return {name: float((found[name] - value).abs().max() / value.abs().max()) for name, value in wanted.items()}


def compare(port, lively, batch, steps, detach):
    (model, draft), real = lively, batch["attention_mask"].bool()
    assert not bool(real.all())
    outcome, seen = KINDS[port].objective(draft, steps)(batch), list(step_by_step(port, model, batch, steps, detach))
    found, wanted = {}, {}
    for number, (step, loss, own) in enumerate(zip(outcome.steps, outcome.step_losses, seen, strict=True)):
        wanted |= {f"out{number}": step.hidden[real], f"logits{number}": step.logits[real], f"loss{number}": loss}
        found |= {f"out{number}": own[0][real], f"logits{number}": own[1][real], f"loss{number}": own[2]}
    outcome.backward_loss.backward()
    sum(loss for *_, loss in seen).backward()
    with torch.no_grad():
        return errors({**found, **gradients(model, KINDS[port].native)}, {**wanted, **gradients(draft)})


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_logits_losses_and_every_gradient_are_the_ports(port, lively, batch_of, steps, monkeypatch):
    """Eagle3's projects whole, as the adapter does, so that only rounding of equal sums is left between them."""
    monkeypatch.setattr(ports.eagle3.model, "can_share", lambda layer: False)
    found = compare(port, lively, batch_of(0, 1), steps, detach=port == "hass")
    assert len(found) == 3 * steps + (13 if port == "eagle3" else 12)
    assert max(found.values()) <= LARGEST, found


def test_a_gradient_between_the_steps_where_there_is_none_would_be_seen(port, lively, batch_of):
    """The planted fault, and the other way round for Eagle3."""
    found = compare(port, lively, batch_of(0, 1), 4, detach=port == "eagle3")
    assert max(found.values()) > 1e-2


def test_parameters_go_by_the_prototypes_names(port, make):
    model = make()
    tensors = load_file(RECORDINGS / f"initial_{port}_fp32.safetensors")
    recorded = {name[5:] for name in tensors if name.startswith("init.")}
    names = [name for name, _ in model.named_parameters()]
    assert set(names) == recorded | {"embed_tokens.weight"} == set(model.state_dict())
    assert len(names) == len({id(value) for value in model.parameters()})
    assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["embed_tokens.weight"]


def test_save_native_writes_what_speculators_reads(port, lively, fixture, tmp_path):
    model, _ = lively
    (fixture / "verifier" / "tokenizer.json").write_text("{}")
    folder = model.save_native(tmp_path / "native")
    assert (folder / "tokenizer.json").is_file()
    back = SpeculatorModel.from_pretrained(folder)
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[KINDS[port].native(name)], value), name
    assert back.config.speculators_config.proposal_methods[0].speculative_tokens == 3


def test_it_runs_in_eval_mode_without_history_and_without_a_mask(lively, batch_of):
    model, batch = lively[0], batch_of(0)
    with torch.no_grad():
        trained = model.train()(batch["features"], batch["input_ids"], batch["attention_mask"])
        assert torch.equal(model.eval()(batch["features"], batch["input_ids"]), trained)


@only_eagle3
def test_it_runs_cast_to_bfloat16_with_float32_rotary_frequencies(port, lively, batch_of):
    model, batch = lively[0], batch_of(0, 1)
    real = batch["attention_mask"].bool()
    exact = list(step_by_step(port, model, batch, 3, False))[2][1][real]
    frequencies = model.draft.rotary_emb.inv_freq.clone()
    model.bfloat16()
    assert torch.equal(model.draft.rotary_emb.inv_freq, frequencies)
    model.draft.verifier_lm_head.float()
    logits = list(step_by_step(port, model, batch, 3, False))[2][1][real].detach()
    assert logits.dtype is torch.bfloat16
    assert float((logits.float() - exact).norm() / exact.norm()) < 0.05


@only_eagle3
def test_under_autocast_it_takes_the_scripts_bfloat16_features(lively, batch_of):
    model, batch = lively[0], batch_of(0)
    hidden = model.fc(batch["features"].bfloat16())  # outside of autocast, as the script does
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(hidden, batch["input_ids"], batch["attention_mask"], [hidden])
    assert model.lm_head(model.lm_head_layernorm(out)).dtype is torch.float32


def test_what_could_not_be_served_is_refused(refuses, make, port, fixture):
    own, expected = KINDS[port].adapter, "a verifier and its embedding"
    config = own.EConfig.from_pretrained(fixture / f"draft_{port}.json")
    with refuses(f"draft_{port}.json", "path, load_emb", "(None, True)", expected):
        own.Model(config)
    with refuses(f"draft_{port}.json", "path, load_emb", "False", expected):
        own.Model(config, load_emb=False, path=str(fixture / "verifier"))
    with refuses("no.json", "draft_config", "no such file", "a draft config"):
        own.EConfig.from_pretrained("no.json")
    (fixture / "verifier" / "model.safetensors.index.json").unlink()
    with refuses("verifier", "weights", "no model.safetensors", "a verifier's weights"):
        make()
