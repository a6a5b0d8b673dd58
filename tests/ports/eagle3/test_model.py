"""The unrolled draft against what was recorded, how it starts, and its first layer, projected in halves."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ports.eagle3 import model
from ports.eagle3.model import can_share, unroll
from ports.eagle3.train import build
from ports.training.saving import save_draft
from tests.ports.conftest import edit

both_alignments = pytest.mark.parametrize("alignment", ["prototype", "chain"])


def run(draft, batch, steps=3):
    return unroll(draft, batch["features"], batch["input_ids"], batch["attention_mask"], steps)


def test_a_verifier_in_bfloat16_becomes_float32(settings, fixture):
    for file in (fixture / "verifier").glob("*.safetensors"):
        save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file, {"format": "pt"})
    assert {value.dtype for value in build(settings()).parameters()} == {torch.float32}


def test_the_embedding_stays_frozen_even_if_the_config_asks_otherwise(settings, lively_draft, tmp_path):
    save_draft(lively_draft(), tmp_path / "model0")
    edit(file := tmp_path / "model0" / "config.json", embed_requires_grad=True)
    assert not build(settings(configpath=str(file))).embed_tokens.weight.requires_grad


def test_fresh_matrices_come_from_torchs_own_distribution(settings):
    """Uniform within 1 / sqrt(inputs), as nn.Linear starts; transformers would draw from N(0, 0.02)."""
    draft = build(settings())
    for name in ("fc", "layers.0.self_attn.q_proj", "layers.0.mlp.down_proj"):
        weight = draft.get_submodule(name).weight.detach()
        limit = weight.shape[1] ** -0.5
        assert weight.abs().max() <= limit
        assert weight.std() == pytest.approx(limit / 3**0.5, rel=0.1)


def with_and_without_sharing(draft, batch, monkeypatch):
    """Logits, gradients by name and FLOPs of the forward, with the shared half and through the layer as it is."""
    for shares in (True, False):
        if not shares:
            monkeypatch.setattr(model, "can_share", lambda layer: False)
        draft.zero_grad()
        with FlopCounterMode(display=False) as counter:
            steps = run(draft, batch)
        logits = torch.stack([step.logits for step in steps])
        logits.square().mean().backward()
        grads = {name: value.grad for name, value in draft.named_parameters() if value.grad is not None}
        yield logits.detach(), grads, counter.get_total_flops()


@both_alignments
@pytest.mark.parametrize("norm_before_residual", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_the_shared_first_layer_is_the_layer(
    lively_draft, batch_of, monkeypatch, alignment, norm_before_residual, biases
):
    draft, batch = lively_draft(ttt_alignment=alignment), batch_of(0, 1, 2)
    layer = draft.layers[0]
    layer.norm_before_residual = norm_before_residual
    for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
        projection = getattr(layer.self_attn, name)
        bias = torch.linspace(-1, 1 + number, projection.out_features)
        projection.bias = nn.Parameter(bias) if biases else None
    assert can_share(draft.double().layers[0])
    real = batch["attention_mask"].bool().expand(3, -1, -1)
    shared, plain = with_and_without_sharing(draft, batch, monkeypatch)
    torch.testing.assert_close(shared[0][real], plain[0][real], rtol=1e-11, atol=1e-11)
    assert shared[1].keys() == plain[1].keys()
    for name, grad in plain[1].items():
        torch.testing.assert_close(shared[1][name], grad, rtol=1e-9, atol=1e-9 * float(grad.abs().max()))
        assert grad.abs().max() > 0, name
    tokens, width, heads = batch["input_ids"].numel(), 32, (4 + 2 + 2) * 12
    assert plain[2] - shared[2] == 2 * (2 * tokens * width * heads)
