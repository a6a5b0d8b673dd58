"""What changes no number: rows in no loss run forward alone, layers run again in the backward, halves are shared."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointError
from torch.utils.flop_counter import FlopCounterMode

import ports.eagle3.model
import ports.hass.model
from ports.training import shared_compute
from ports.training.alignment import Alignment
from ports.training.attention import StepLayer
from ports.training.data import collate, pack
from ports.training.shared_compute import TrainedRows, can_split
from tests.ports.conftest import edit

MODELS = (ports.eagle3.model, ports.hass.model)


@pytest.fixture
def prepared(lively, fixture):
    """An objective, and a batch of four samples."""

    def make(algorithm, lay=collate, layers=1, **changes):
        edit(fixture / f"draft_{algorithm}.json", num_hidden_layers=layers)
        objective, samples = lively(algorithm, **changes)
        assert len(objective.draft.layers) == layers
        return objective.train(), lay([samples[index] for index in range(4)])

    return make


def learn(objective, batch):
    """Outcome, and gradients by name."""
    outcome = objective(batch)
    outcome.backward_loss.backward()
    found = {name: value.grad for name, value in objective.draft.named_parameters() if value.grad is not None}
    objective.zero_grad(set_to_none=True)
    return outcome, found


@pytest.mark.parametrize("lay", [collate, pack])
@pytest.mark.parametrize("form", ["eager", "fast"])
@pytest.mark.parametrize("alignment", [each.value for each in Alignment])
def test_running_again_gives_the_same_bits(prepared, algorithm, alignment, form, lay):
    changes = {"ttt_alignment": alignment, "attn_implementation": form, "forward_num_total": 4}
    assert_same_bits(*prepared(algorithm, lay, **changes))


def test_and_in_bfloat16_and_with_several_layers(prepared, algorithm):
    objective, batch = prepared(algorithm, layers=3, ttt_alignment="chain", forward_num_total=3)
    assert_same_bits(objective, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(objective, batch)


def assert_same_bits(objective, batch):
    kept_outcome, kept = learn(objective, batch)
    objective.recompute = True
    outcome, again = learn(objective, batch)
    objective.recompute = False
    assert torch.equal(outcome.step_losses, kept_outcome.step_losses)
    assert kept.keys() == again.keys()
    assert [name for name in kept if not torch.equal(kept[name], again[name])] == []


def layers_made(patch):
    """Every cache layer that is made from now on."""
    made, plain = [], StepLayer.__init__
    patch.setattr(StepLayer, "__init__", lambda layer: (plain(layer), made.append(layer))[0])
    return made


def test_a_cache_written_twice_is_noticed(prepared, algorithm, monkeypatch):
    """The planted fault: the second run finds the keys of all steps, its own among them."""
    objective, batch = prepared(algorithm, forward_num_total=3)
    objective.recompute, made = True, layers_made(monkeypatch)
    monkeypatch.setattr(shared_compute, "_OnceWritten", lambda cache: cache)
    with pytest.raises(CheckpointError, match=r"different metadata|number of tensors"):
        learn(objective, batch)
    assert len(made[0].step_keys) > 3


def cost(objective, batch, patch):
    """FLOPs of a forward and backward, and bytes kept between them: what autograd saved, and keys and values."""
    own, kept = {value.untyped_storage().data_ptr() for value in objective.parameters()}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with patch.context() as patched, FlopCounterMode(display=False) as counter:
        made = layers_made(patched)
        with saved_tensors_hooks(note, lambda tensor: tensor):
            outcome = objective(batch)
        for layer in made:
            for states in (*layer.step_keys, *layer.step_values):
                note(states)
        outcome.backward_loss.backward()
    objective.zero_grad(set_to_none=True)
    return counter.get_total_flops(), sum(kept.values())


def test_what_each_of_them_saves(prepared, algorithm, monkeypatch):
    objective, batch = prepared(algorithm, forward_num_total=5)
    batch = {name: value.repeat(8, *[1] * (value.dim() - 1)) for name, value in batch.items()}
    _, kept = cost(objective, batch, monkeypatch)
    objective.recompute = True
    assert 0 < cost(objective, batch, monkeypatch)[1] < 0.5 * kept
    objective, batch = prepared(algorithm, forward_num_total=2)
    fewer = cost(objective, batch, monkeypatch)
    switch_off_rows(monkeypatch)
    flops, kept = cost(objective, batch, monkeypatch)
    assert fewer[0] < 0.98 * flops
    assert fewer[1] < 0.95 * kept


def switch_off_rows(monkeypatch):
    for module in MODELS:
        monkeypatch.setattr(module, "TrainedRows", lambda mask: None)


@pytest.mark.parametrize("lay", [collate, pack])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_outputs_and_gradients_stay_what_they_are(prepared, monkeypatch, algorithm, layers, recompute, lay):
    alignment = "prototype" if layers == 1 else "chain"
    objective, batch = prepared(algorithm, lay, layers, ttt_alignment=alignment, activation_checkpointing=recompute)
    outcome, found = learn(objective, batch)
    switch_off_rows(monkeypatch)
    expected_outcome, expected = learn(objective, batch)
    torch.testing.assert_close(outcome.step_losses, expected_outcome.step_losses, rtol=1e-6, atol=0)
    for step, expected_step in zip(outcome.steps, expected_outcome.steps, strict=True):
        torch.testing.assert_close(step.hidden, expected_step.hidden, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6 * float(value.abs().max()), msg=name)


def test_a_mask_that_misses_rows_in_the_loss_is_seen(prepared, monkeypatch, algorithm):
    """The comparison above can fail."""
    objective, batch = prepared(algorithm)
    _, expected = learn(objective, batch)
    half = partial(torch.mul, torch.arange(batch["loss_mask"].shape[1]) % 2)
    for module in MODELS:
        monkeypatch.setattr(module, "TrainedRows", lambda mask: TrainedRows(half(mask)))
    _, found = learn(objective, batch)
    name = "layers.0.mlp.down_proj.weight"
    assert (found[name] - expected[name]).abs().max() > 0.01 * expected[name].abs().max()


def test_a_batch_without_rows_in_the_loss_leaves_every_gradient_at_zero(prepared, algorithm):
    """A process that has none must not make DDP wait for gradients that never come."""
    objective, batch = prepared(algorithm)
    _, some = learn(objective, batch)
    _, none = learn(objective, {**batch, "loss_mask": torch.zeros_like(batch["loss_mask"])})
    assert none.keys() == some.keys()
    assert all(not value.any() for value in none.values())


def test_the_first_use_of_weights_is_one_with_gradient():
    """Autocast casts a weight once; up to torch 2.10 without gradient for good if that first use has none."""
    seen = []
    rows = TrainedRows(torch.tensor([[0.0, 1.0]]))
    rows.apply(lambda states: seen.append(torch.is_grad_enabled()) or states, torch.ones(1, 2, 3, requires_grad=True))
    assert seen == [True, False]


def test_a_layer_that_is_watched_or_of_another_make_is_called_as_it_is(prepared, monkeypatch):
    opened = []
    monkeypatch.setattr(
        shared_compute.OpenLayer, "__init__", lambda self, layer: opened.append(layer) or setattr(self, "layer", layer)
    )
    objective, batch = prepared("hass", forward_num_total=1)
    learn(objective, batch)
    assert opened == [objective.draft.layers[-1]]
    objective.draft.layers[-1].mlp.register_forward_hook(lambda *_: None)
    learn(objective, batch)
    other = nn.TransformerEncoderLayer(8, 2)
    assert shared_compute._on_rows(other, TrainedRows(torch.ones(1, 3))) is other
    assert len(opened) == 1


def test_only_plain_products_in_full_precision_are_split():
    class Adapted(nn.Linear):
        pass

    layer = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 3), Adapted(2, 2), nn.Identity()])
    assert can_split(layer, layer[:2])
    assert can_split(layer.double(), layer[:2])
    assert not can_split(layer, layer[1:3])
    assert not can_split(layer, layer[3:])
    assert not can_split(layer.bfloat16(), layer[:2])
    with torch.autocast("cpu", torch.bfloat16):
        assert can_split(layer.float(), layer[:2])
