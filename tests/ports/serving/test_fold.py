"""Folding is exact: the folded draft computes what the draft computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ports.serving.fold import fold
from ports.serving.layout import folded_weights

ROUND_OFF = 1e-6
"""Of a logit's size: float32 products summed in another order; measured at most 3e-7 on these sizes."""


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(1)
    draw = {"embedding": (11, 6), "norm": (6,), "fc": (6, 12), "bias": (6,), "hidden": (5, 6)}
    return {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in draw.items()}


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_fusion_is_equal_in_float64(parts, with_bias):
    bias = parts["bias"] if with_bias else None
    ids, hidden, eps = torch.tensor([3, 0, 10, 3, 7]), parts["hidden"], 1e-3
    normed = nn.functional.rms_norm(parts["embedding"], (6,), parts["norm"], eps)[ids]
    expected = nn.functional.linear(torch.cat([normed, hidden], -1), parts["fc"], bias)
    table, weight = fold(parts["embedding"], parts["norm"], eps, parts["fc"], bias)
    found = nn.functional.linear(torch.cat([table[ids], hidden], -1), weight)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_every_part_of_the_fold_is_needed(parts):
    """Planted faults: no eps, another norm, another fc."""
    whole, _ = fold(parts["embedding"], parts["norm"], 1e-3, parts["fc"])
    ones = torch.ones(6, dtype=torch.float64)
    assert not torch.allclose(fold(parts["embedding"], parts["norm"], 0.0, parts["fc"])[0], whole)
    assert not torch.allclose(fold(parts["embedding"], ones, 1e-3, parts["fc"])[0], whole)
    assert not torch.allclose(fold(parts["embedding"], parts["norm"], 1e-3, parts["fc"].flip(1))[0], whole)


def test_the_folded_draft_gives_the_drafts_logits(hass_draft, batch):
    weights = folded_weights(hass_draft)
    folded = copy.deepcopy(hass_draft)
    folded.embed_layernorm = nn.Identity()
    missing = folded.load_state_dict(weights, strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["lm_head.weight"], [])
    for ours, theirs in zip(folded(**batch), hass_draft(**batch), strict=True):
        scale = float(theirs.logits.detach().abs().max())
        assert float((ours.logits - theirs.logits).detach().abs().max()) <= ROUND_OFF * scale
        assert scale > 1
