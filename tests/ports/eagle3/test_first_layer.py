import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ports.eagle3 import first_layer
from ports.eagle3.model import unroll


def run(draft, batch, steps=3):
    return unroll(draft, batch["features"], batch["input_ids"], batch["attention_mask"], steps)


def both(draft, batch, monkeypatch):
    """Logits and gradients of every step with the shared half and through the layer as it is."""
    sides = []
    for shares in (True, False):
        if not shares:
            monkeypatch.setattr(first_layer, "can_share", lambda layer: False)
        draft.zero_grad()
        logits = torch.stack([step.logits for step in run(draft, batch)])
        logits.square().mean().backward()
        grads = {name: value.grad for name, value in draft.named_parameters() if value.grad is not None}
        sides.append((logits.detach(), grads))
    return sides


@pytest.mark.parametrize("alignment", ["prototype", "chain"])
@pytest.mark.parametrize("changes", [{}, {"norm_before_residual": True}])
def test_the_numbers_are_the_layers_own(lively_draft, batch_of, monkeypatch, alignment, changes):
    draft = lively_draft(ttt_alignment=alignment).double()
    for name, value in changes.items():
        setattr(draft.layers[0], name, value)
    assert first_layer.can_share(draft.layers[0])
    batch = batch_of(0, 1, 2)
    real = batch["attention_mask"].bool().expand(3, -1, -1)
    shared, whole = both(draft, batch, monkeypatch)
    torch.testing.assert_close(shared[0][real], whole[0][real], rtol=1e-11, atol=1e-11)
    assert shared[1].keys() == whole[1].keys()
    for name, grad in whole[1].items():
        torch.testing.assert_close(shared[1][name], grad, rtol=1e-9, atol=1e-9 * float(grad.abs().max()))
        assert grad.abs().max() > 0, name


def test_biases_are_added_once_a_step(lively_draft, batch_of, monkeypatch):
    draft = lively_draft()
    attention = draft.layers[0].self_attn
    for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
        projection = getattr(attention, name)
        projection.bias = nn.Parameter(torch.linspace(-1, 1 + number, projection.out_features))
    shared, whole = both(draft.double(), batch_of(2), monkeypatch)
    torch.testing.assert_close(shared[0], whole[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(shared[1]["layers.0.self_attn.v_proj.bias"], whole[1]["layers.0.self_attn.v_proj.bias"])


def test_half_of_the_later_projections_is_saved(lively_draft, batch_of, monkeypatch):
    draft, batch = lively_draft(), batch_of(0)
    flops = []
    for shares in (True, False):
        if not shares:
            monkeypatch.setattr(first_layer, "can_share", lambda layer: False)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(draft, batch)
        flops.append(counter.get_total_flops())
    tokens, width, heads = batch["input_ids"].numel(), 32, (4 + 2 + 2) * 12
    assert flops[1] - flops[0] == 2 * (2 * tokens * width * heads)


def test_a_layer_that_somebody_watches_or_changed_runs_as_it_is(lively_draft):
    class Adapted(nn.Linear):
        pass

    layer = lively_draft().layers[0]
    assert first_layer.can_share(layer)
    handle = layer.mlp.register_forward_hook(lambda *_: None)
    assert not first_layer.can_share(layer)
    handle.remove()
    layer.self_attn.k_proj = Adapted(64, 24, bias=False)
    assert not first_layer.can_share(layer)
    assert not first_layer.can_share(nn.Linear(2, 2))
