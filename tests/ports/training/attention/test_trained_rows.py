"""Rows in no loss run forward alone: the same outputs and gradients, less kept, less computed."""

import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import ports.eagle3.model
import ports.hass.model
from ports.training.attention.trained_rows import TrainedRows, on_trained_rows
from ports.training.data.batches import collate, pack
from tests.ports.conftest import enliven


@pytest.fixture
def batch_and_objective(start_run, fixture, tmp_path):
    """Four samples and an objective with lively weights; several layers train in chain alignment."""

    def make(algorithm, lay=collate, layers=1, **changes):
        if layers > 1:
            file = fixture / f"draft_{algorithm}.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": layers}))
            changes["ttt_alignment"] = "chain"
        loop = start_run(algorithm, tmp_path / "run", noise=False, **changes)
        enliven(loop.objective.draft)
        return lay([loop.plan.loader.dataset.sample(index) for index in range(4)]), loop.objective.train()

    return make


def learn(objective, batch):
    outcome = objective(batch)
    outcome.backward_loss.backward()
    found = {name: value.grad for name, value in objective.draft.named_parameters() if value.grad is not None}
    objective.zero_grad(set_to_none=True)
    return outcome, found


def switch_off(monkeypatch):
    for module in (ports.eagle3.model, ports.hass.model):
        monkeypatch.setattr(module, "TrainedRows", lambda mask: None)


@pytest.mark.parametrize("lay", [collate, pack])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_outputs_and_gradients_stay_what_they_are(batch_and_objective, monkeypatch, algorithm, layers, recompute, lay):
    batch, objective = batch_and_objective(algorithm, lay, layers, activation_checkpointing=recompute)
    outcome, found = learn(objective, batch)
    switch_off(monkeypatch)
    expected_outcome, expected = learn(objective, batch)
    torch.testing.assert_close(outcome.step_losses, expected_outcome.step_losses, rtol=1e-6, atol=0)
    for step, expected_step in zip(outcome.steps, expected_outcome.steps, strict=True):
        torch.testing.assert_close(step.hidden, expected_step.hidden, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6 * float(value.abs().max()), msg=name)


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_less_is_computed_and_kept(batch_and_objective, monkeypatch, algorithm):
    batch, objective = batch_and_objective(algorithm)
    fewer = cost(objective, batch)
    switch_off(monkeypatch)
    flops, kept = cost(objective, batch)
    assert fewer[0] < 0.98 * flops
    assert fewer[1] < 0.95 * kept


def cost(objective, batch):
    """FLOPs of a forward and backward, and bytes kept between them."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(note, lambda tensor: tensor):
        objective(batch).backward_loss.backward()
    objective.zero_grad(set_to_none=True)
    return counter.get_total_flops(), sum(kept.values())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_row_wise_function_has_its_gradient_on_marked_rows_alone(share):
    mask, states = torch.rand(2, 9) < share, torch.randn(2, 9, 5, requires_grad=True)
    module = nn.Linear(5, 5)
    out = TrainedRows(mask).apply(module, states)
    torch.testing.assert_close(out, module(states), rtol=0, atol=1e-6)
    out.sum().backward()
    torch.testing.assert_close(states.grad, mask[..., None] * module.weight.sum(0))
    torch.testing.assert_close(module.bias.grad, torch.full((5,), float(mask.sum())))


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_a_batch_without_rows_in_the_loss_leaves_every_gradient_at_zero(batch_and_objective, algorithm):
    """A process that has none must not make DDP wait for gradients that never come."""
    batch, objective = batch_and_objective(algorithm)
    _, some = learn(objective, batch)
    _, none = learn(objective, {**batch, "loss_mask": torch.zeros_like(batch["loss_mask"])})
    assert none.keys() == some.keys()
    assert all(not value.any() for value in none.values())


def test_a_watched_layer_is_called_as_it_is(batch_and_objective):
    _, objective = batch_and_objective("hass")
    layer, rows = objective.draft.layers[-1], TrainedRows(torch.ones(1, 3))
    assert on_trained_rows(layer, None) is layer
    assert on_trained_rows(layer, rows) is not layer
    layer.mlp.register_forward_hook(lambda *_: None)
    assert on_trained_rows(layer, rows) is layer


def test_a_layer_of_another_make_is_called_as_it_is():
    layer = nn.TransformerEncoderLayer(8, 2)
    assert on_trained_rows(layer, TrainedRows(torch.ones(1, 3))) is layer


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_a_mask_that_misses_rows_in_the_loss_is_seen(batch_and_objective, monkeypatch, algorithm):
    """The comparison above can fail."""
    batch, objective = batch_and_objective(algorithm)
    _, expected = learn(objective, batch)
    half = partial(torch.mul, torch.arange(batch["loss_mask"].shape[1]) % 2)
    for module in (ports.eagle3.model, ports.hass.model):
        monkeypatch.setattr(module, "TrainedRows", lambda mask: TrainedRows(half(mask)))
    _, found = learn(objective, batch)
    name = "layers.0.mlp.down_proj.weight"
    assert (found[name] - expected[name]).abs().max() > 0.01 * expected[name].abs().max()


def test_the_first_use_of_weights_is_one_with_gradient():
    """Autocast casts a weight once; up to torch 2.10 without gradient for good if that first use has none."""
    seen = []
    rows = TrainedRows(torch.tensor([[0.0, 1.0]]))
    rows.apply(lambda states: seen.append(torch.is_grad_enabled()) or states, torch.ones(1, 2, 3, requires_grad=True))
    assert seen == [True, False]
