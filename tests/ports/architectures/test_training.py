"""Every draft of every architecture: trained, saved, opened again, and held against other people's forward."""

import pytest
import torch
from safetensors.torch import load_file
from speculators import SpeculatorModel
from speculators.models.eagle3 import Eagle3DraftModel

from parity.prototypes.library import speculators_forward
from parity.prototypes.reference.drafts import hass as reference_forward
from ports.eagle3.model import SharedFirstLayer
from ports.eagle3.objective import Eagle3Objective
from ports.hass.objective import HassObjective
from ports.training.alignment import Alignment
from ports.training.data import collate
from tests.ports.architectures.conftest import STEPS, Draft
from tests.ports.conftest import enliven

CLOSE = 1e-5


def trained_names(model):
    return {name for name, value in model.named_parameters() if value.requires_grad}


def test_it_trains_saves_and_opens_to_the_bit(draft):
    untrained = draft.build()
    before = {name: value.clone() for name, value in untrained.named_parameters()}
    model, checkpoint = draft.train(epoch=2)
    dataset = draft.dataset(model)
    batch = collate([dataset[0], dataset[1]])
    assert loss_of(draft, model, batch) < 0.97 * loss_of(draft, untrained, batch)
    for name in trained_names(model):
        assert model.get_parameter(name).isfinite().all(), name
    moved = {name for name in before if not torch.equal(before[name], model.get_parameter(name))}
    assert moved >= trained_names(model) - {"lm_head.weight"}
    again = SpeculatorModel.from_pretrained(checkpoint)
    saved = load_file(checkpoint / "model.safetensors")
    own, found = model.state_dict(), again.state_dict()
    assert own.keys() == found.keys()
    for name, value in own.items():
        assert torch.equal(found[name], value), name
        assert name not in saved or torch.equal(saved[name], value), name
    assert again.config.transformer_layer_config.model_type == draft.layer


@torch.no_grad()
def loss_of(draft, model, batch):
    objective = Eagle3Objective if draft.algorithm == "eagle3" else HassObjective
    return float(objective(model, STEPS)(batch).loss)


def test_the_verifiers_weights_are_attached(draft):
    model, weights = draft.build(), {}
    for file in draft.tiny.verifier.glob("*.safetensors"):
        weights |= load_file(file)
    prefix = "language_model." if draft.tiny.architecture.name == "llama4" else ""
    assert torch.equal(model.embed_tokens.weight, weights[f"{prefix}model.embed_tokens.weight"])
    head = weights[f"{prefix}lm_head.weight"]
    if draft.algorithm == "eagle3":
        assert torch.equal(model.verifier_norm.weight, weights[f"{prefix}model.norm.weight"])
        head = head[model.t2d]
    assert torch.equal(model.lm_head.weight, head)
    named = model.config.speculators_config.verifier
    assert named.name_or_path == str(draft.tiny.verifier)
    assert named.architectures == draft.tiny.architecture.config["architectures"]


def theirs_and_ours(draft):
    """Speculators' model and ours in chain alignment, with the same lively weights."""
    ours = enliven(draft.build(ttt_alignment="chain"))
    config = type(ours.config).from_dict(ours.config.to_dict())
    config.transformer_layer_config._attn_implementation = "sdpa"  # eager sees wrong keys in Speculators 0.8.1
    theirs = Eagle3DraftModel(config)
    theirs.load_state_dict(ours.state_dict())
    theirs.verifier_norm = torch.nn.Identity()  # the records' targets are after the norm
    return theirs, ours


def one_longer(batch):
    """The last position is the one that is left out of Speculators' forward."""
    return {name: torch.cat([value, value[:, -1:]], dim=1) for name, value in batch.items()}


def compare_gradients(found, wanted):
    """Of two modules, by name; Speculators freezes its head."""
    found, wanted = (
        {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        for model in (found, wanted)
    )
    assert set(wanted) >= set(found) - {"lm_head.weight"}
    assert len(wanted) >= 12
    for name, value in wanted.items():
        assert float((found[name] - value).norm()) <= CLOSE * float(value.norm()), name
        assert value.abs().max() > 0, name


@pytest.mark.parametrize("index", [0, 3])
def test_the_chain_is_speculators_own(eagle3_draft, index):
    """Logits, loss and every gradient. Its index q at step s is position p = q + s here."""
    theirs, ours = theirs_and_ours(eagle3_draft)
    batch = collate([eagle3_draft.dataset(ours, ttt_alignment="chain")[index]])
    logits, loss = speculators_forward(theirs, one_longer(batch), STEPS)
    outcome = Eagle3Objective(ours, STEPS, Alignment.CHAIN)(batch)
    assert len(logits) == len(outcome.steps) == STEPS
    for number, (step, wanted) in enumerate(zip(outcome.steps, logits, strict=True)):
        length = batch["input_ids"].shape[1] - number
        torch.testing.assert_close(step.logits[:, number:], wanted[:, :length], rtol=0, atol=CLOSE)
        assert wanted.std() > 0.8
    torch.testing.assert_close(outcome.loss, loss.detach(), rtol=1e-6, atol=1e-6)
    outcome.backward_loss.backward()
    loss.backward()
    compare_gradients(ours, theirs)


@pytest.mark.parametrize("part", ["q_norm", "k_norm"])
def test_a_missing_norm_of_the_heads_would_show(tiny_of, tmp_path, monkeypatch, part):
    """The planted fault: queries or keys without Qwen 3's norm."""
    qwen3 = Draft(tiny_of("qwen3"), "eagle3", "qwen3", tmp_path)
    normed = SharedFirstLayer._normed
    forget = lambda self, name, states: states if name == part else normed(self, name, states)  # noqa: E731
    monkeypatch.setattr(SharedFirstLayer, "_normed", forget)
    with pytest.raises(AssertionError, match="not close"):
        test_the_chain_is_speculators_own(qwen3, 0)


@pytest.mark.parametrize("alignment", list(Alignment))
def test_hass_is_the_reference(hass_draft, alignment):
    """Speculators has no HASS: the formulas written for reading take its place."""
    model = enliven(hass_draft.build(ttt_alignment=alignment.value))
    dataset = hass_draft.dataset(model, ttt_alignment=alignment.value)
    batch = collate([dataset[0], dataset[1]])
    config = hass_draft.tiny.architecture.drafts["llama"]
    weights = dict(model.named_parameters())
    inputs = {**batch, "hidden_states": batch["features"]}
    expected = reference_forward(
        weights, config, inputs, model.lm_head.weight, STEPS, 10, own_position=alignment is Alignment.PROTOTYPE
    )
    real = batch["attention_mask"].bool()
    found = HassObjective(model, STEPS)(batch)
    for ours, wanted in zip(found.steps, expected.steps, strict=True):
        torch.testing.assert_close(ours.logits[real], wanted.logits[real], rtol=0, atol=CLOSE)
        assert wanted.logits[real].std() > 0.8
