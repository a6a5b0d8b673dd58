"""What a verifier's last state becomes: its class's own norm, head, scales, caps and biases, or a refusal."""

import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ports.eagle3.objective import Eagle3Objective
from ports.hass.objective import HassObjective
from ports.training.data import collate
from ports.training.loss import LossImplementation
from ports.verifier.loading import load_verifier
from ports.verifier.logits import VerifierHead, applied, final_norm
from tests.ports.conftest import TRAIN, settings_of

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": 61,
    "max_position_embeddings": 64,
}
BEYOND = {  # more than a product with the head
    "Granite": {"logits_scaling": 8.0},
    "Cohere": {"logit_scale": 0.25},
    "Gemma2": {"final_logit_softcapping": 0.5},
    "Phi": {},
}
PLAIN = {"Llama": {}, "Gemma": {}, "Qwen3": {}}
IDS = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(0))
OBJECTIVES = {"eagle3": Eagle3Objective, "hass": HassObjective}


@pytest.fixture
def verifier(fixture):
    """``verifier(class, entries)``: one of that class in the place of the fixture's, every bias and norm drawn."""

    def build(name, entries):
        place = fixture / "verifier"
        shutil.rmtree(place)
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**SIZES, **entries)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for value in model.parameters():
            value.data += 0.2 * torch.randn_like(value)
        model.save_pretrained(place)
        return str(place)

    return build


@torch.no_grad()
def spoken(place):
    """By the model itself: its state before the final norm, after it, and its logits."""
    model, before = load_verifier(place, "float32", "cpu", head=True), []
    norm = getattr(model.model, "norm", None) or model.model.final_layernorm
    norm.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0]))
    told = model(IDS, output_hidden_states=True, use_cache=False)
    return before[0], told.hidden_states[-1], told.logits


@pytest.mark.parametrize("name", [*BEYOND, *PLAIN])
def test_norm_and_logits_are_the_models_own(verifier, name):
    """Cohere's norm is no RMSNorm, Gemma's adds 1 to its weight, Phi's head has a bias."""
    place = verifier(name, {**BEYOND, **PLAIN}[name])
    before, last, logits = spoken(place)
    head, rows = VerifierHead.load(place), torch.tensor([3, 60, 5])
    assert head.is_linear is (name in PLAIN)
    torch.testing.assert_close(head.norm(before), last, rtol=0, atol=0)
    torch.testing.assert_close(applied(final_norm(place), before), last, rtol=0, atol=0)
    torch.testing.assert_close(head(last), logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(VerifierHead.load(place, rows)(last), logits[..., rows], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", BEYOND)
def test_targets_are_the_models_own_distribution(verifier, fixture, tmp_path, algorithm, name):
    _, last, logits = spoken(verifier(name, BEYOND[name]))
    draft = TRAIN[algorithm][0].build(settings_of(fixture, algorithm, cpdir=tmp_path / "checkpoints"))
    objective = OBJECTIVES[algorithm](draft, 2)
    spoken_for = draft.t2d.bool() if algorithm == "eagle3" else slice(None)
    target = objective.verifier(last)
    torch.testing.assert_close(target.logits, logits[..., spoken_for], rtol=1e-5, atol=1e-5)
    if algorithm == "eagle3":
        assert torch.equal(objective.target_tokens(last[0]) >= 0, draft.t2d.bool()[logits[0].argmax(-1)])


def test_both_losses_read_a_capped_target_alike(verifier, fixture, tmp_path, algorithm):
    verifier("Gemma2", BEYOND["Gemma2"])
    settings, train = settings_of(fixture, algorithm, cpdir=tmp_path / "checkpoints"), TRAIN[algorithm][0]
    draft = train.build(settings)
    dataset = train.build_dataset(settings, draft.config)
    batch = collate([dataset[index] for index in (0, 2)])
    fused, eager = (
        OBJECTIVES[algorithm](draft, 2, implementation=each)(batch).step_losses
        for each in (LossImplementation.FUSED, LossImplementation.EAGER)
    )
    torch.testing.assert_close(fused, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("lost", "value"), [("model.norm.weight", torch.nan), ("lm_head.weight", 0.0), ("lm_head.weight", None)]
)
def test_a_head_or_norm_that_is_none_is_refused(verifier, refuses, lost, value):
    place = verifier("Llama", {})
    file = f"{place}/model.safetensors"
    weights = load_file(file)
    weights.pop(lost) if value is None else weights[lost].fill_(value)
    save_file(weights, file, metadata={"format": "pt"})
    found = "missing" if value is None else "nothing but zeros" if value == 0 else "NaN"
    with refuses(place, lost, found, "weights"):
        VerifierHead.load(place)


def test_logits_that_hang_together_are_not_cut_to_rows(verifier, refuses, monkeypatch):
    place, own = verifier("Llama", {}), transformers.LlamaForCausalLM.forward

    def forward(self, **inputs):
        given = own(self, **inputs)
        given.logits = given.logits.log_softmax(-1)
        return given

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    assert not VerifierHead.load(place).is_linear
    with refuses(place, "LlamaForCausalLM", "hang together", "each token's logit for itself"):
        VerifierHead.load(place, torch.tensor([1, 2]))


@pytest.mark.parametrize("name", ["norm", "last_hidden_state"])
def test_a_class_whose_last_state_no_norm_gives_is_refused(verifier, refuses, monkeypatch, name):
    place, own = verifier("Llama", {}), transformers.LlamaModel.forward

    def forward(self, **inputs):
        given = own(self, **inputs)
        given.last_hidden_state = given.last_hidden_state * 2 if name == "norm" else None
        return given

    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    monkeypatch.setattr("ports.verifier.logits._SKELETONS", {})  # a class is looked at once
    with refuses(place, "LlamaForCausalLM", "no module", "by a final norm"):
        VerifierHead.load(place)
