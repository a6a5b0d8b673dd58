"""Activation checkpointing: the same bits, less kept, and a cache that is written once."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointError

from ports.training.alignment import Alignment
from ports.training.attention import recompute
from ports.training.attention.dense import StepLayer
from ports.training.data.batches import collate, pack
from tests.ports.conftest import enliven

BOTH = [alignment.value for alignment in Alignment]


@pytest.fixture
def prepared(start_run, tmp_path):
    """``prepared(algorithm, **changes)``: an objective with lively weights, and the samples of the fixture."""

    def make(algorithm, **changes):
        loop = start_run(algorithm, tmp_path / "run", noise=False, **changes)
        enliven(loop.objective.draft)
        return loop.objective.train(), [loop.plan.loader.dataset.sample(index) for index in range(4)]

    return make


def learn(objective, batch, precision=None):
    """Losses and gradients by name."""
    with ExitStack() as stack:
        if precision:
            stack.enter_context(torch.autocast("cpu", precision))
        outcome = objective(batch)
    outcome.backward_loss.backward()
    named = objective.draft.named_parameters()
    found = {name: value.grad for name, value in named if value.grad is not None}
    objective.zero_grad(set_to_none=True)
    return {**found, "step losses": outcome.step_losses.detach()}


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("form", ["eager", "fast"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("lay", [collate, pack])
def test_losses_and_gradients_are_the_same_to_the_bit(prepared, algorithm, alignment, form, steps, lay):
    changes = {"ttt_alignment": alignment, "attn_implementation": form, "forward_num_total": steps}
    objective, samples = prepared(algorithm, **changes)
    assert_same(objective, lay(samples))


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_and_in_bfloat16(prepared, algorithm):
    objective, samples = prepared(algorithm, forward_num_total=3)
    assert_same(objective, collate(samples), torch.bfloat16)


def assert_same(objective, batch, precision=None):
    kept = learn(objective, batch, precision)
    objective.recompute = True
    again = learn(objective, batch, precision)
    assert kept.keys() == again.keys()
    assert [name for name in kept if not torch.equal(kept[name], again[name])] == []


def test_several_layers(prepared, fixture):
    file = fixture / "draft_hass.json"
    file.write_text(file.read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 3'))
    objective, samples = prepared("hass", ttt_alignment="chain", forward_num_total=3)
    assert len(objective.draft.layers) == 3
    assert_same(objective, collate(samples))


class Caches:
    """Every cache layer that was made, and how often a layer of the draft ran."""

    def __init__(self, patch, draft):
        self.made, self.runs = [], 0
        plain = StepLayer.__init__
        patch.setattr(StepLayer, "__init__", lambda layer: (plain(layer), self.made.append(layer))[0])
        last = draft.layers[0].self_attn.o_proj
        patch.setattr(last, "forward", partial(self._count, last.forward))  # a hook would have the layer run otherwise

    def _count(self, forward, states):
        self.runs += 1
        return forward(states)


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_layers_run_twice_and_the_cache_is_written_once(prepared, algorithm, monkeypatch):
    objective, samples = prepared(algorithm, forward_num_total=3)
    objective.recompute, caches = True, Caches(monkeypatch, objective.draft)
    learn(objective, collate(samples))
    assert caches.runs == 2 * 3
    assert [(len(layer.step_keys), len(layer.step_values)) for layer in caches.made] == [(3, 3)]


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_a_cache_written_twice_is_noticed(prepared, algorithm, monkeypatch):
    """The planted fault: the second run finds the keys of all steps, its own among them."""
    objective, samples = prepared(algorithm, forward_num_total=3)
    objective.recompute, caches = True, Caches(monkeypatch, objective.draft)
    monkeypatch.setattr(recompute, "_OnceWritten", lambda cache: cache)
    with pytest.raises(CheckpointError, match=r"different metadata|number of tensors"):
        learn(objective, collate(samples))
    assert len(caches.made[0].step_keys) > 3


class Kept:
    """Bytes of the distinct tensors that the backward will need, without the parameters."""

    def __init__(self, objective):
        self._sizes, self._parameters = {}, {value.untyped_storage().data_ptr() for value in objective.parameters()}

    def take(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self):
        return sum(self._sizes.values())


def kept_after_forward(objective, batch, patch):
    """What autograd saved, and the keys and values in the cache, which checkpointing holds on to."""
    kept = Kept(objective)
    with patch.context() as patched, saved_tensors_hooks(kept.take, lambda tensor: tensor):
        caches = Caches(patched, objective.draft)
        outcome = objective(batch)
    for layer in caches.made:
        for states in (*layer.step_keys, *layer.step_values):
            kept.take(states)
    assert outcome.backward_loss.requires_grad
    return kept.bytes


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_less_is_kept_for_the_backward(prepared, algorithm, monkeypatch):
    objective, samples = prepared(algorithm, forward_num_total=5)
    batch = collate(samples * 8)
    whole = kept_after_forward(objective, batch, monkeypatch)
    objective.recompute = True
    part = kept_after_forward(objective, batch, monkeypatch)
    assert 0 < part < 0.5 * whole, (part, whole)


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_a_run_is_the_same_and_may_change_over_in_the_middle(run_to_the_end, run_until, tmp_path, algorithm):
    expected = run_to_the_end(algorithm, tmp_path / "kept")
    checkpoint = run_until(algorithm, tmp_path / "stopped", 4)
    found = run_to_the_end(algorithm, tmp_path / "stopped", ckpt_path=checkpoint, activation_checkpointing=True)
    assert expected.differs_from(found) == []
    assert found.lines[1:] == expected.lines[1:]
