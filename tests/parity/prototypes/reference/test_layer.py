"""The rotary embedding against transformers' Llama."""

from copy import deepcopy

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from parity.prototypes.reference.layer import rope_frequencies, rotary_angles, rotate
from tests.fixtures.test_verifier import LLAMA3

BASE = {"hidden_size": 48, "num_attention_heads": 4, "max_position_embeddings": 256, "rope_theta": 5000.0}
SCALINGS = [None, {"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 2.5}, LLAMA3]


@pytest.mark.parametrize("dim", [None, 10, 64])
@pytest.mark.parametrize("scaling", SCALINGS, ids=["default", "linear", "linear-old-key", "llama3"])
def test_rotation_is_llama_s(scaling, dim):
    values = {**BASE, "rope_scaling": scaling, **({"head_dim": dim} if dim else {})}
    theirs = LlamaRotaryEmbedding(LlamaConfig.from_dict(deepcopy(values)))
    assert torch.equal(rope_frequencies(values, torch.float32), theirs.inv_freq)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 3, 7, dim or 12).to(dtype)
        expected, _ = apply_rotary_pos_emb(x, x, *theirs(x, torch.arange(7)[None]))
        found = rotate(x, *rotary_angles(values, 7, dtype))
        assert found.dtype == dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, LLAMA3], ids=["default", "llama3"])
def test_rotation_as_transformers_5_writes_it(scaling):
    once = {**BASE, "rope_theta": 700.0, "rope_scaling": scaling}
    now = {**BASE, "rope_parameters": {**scaling, "rope_theta": 700.0}}
    assert torch.equal(*(rope_frequencies(values, torch.float32) for values in (once, now)))


def test_an_unknown_scaling_is_refused():
    with pytest.raises(ValueError, match=r"rope_scaling\.rope_type: found yarn, expected default, linear or llama3"):
        rope_frequencies({**BASE, "rope_scaling": {"rope_type": "yarn"}}, torch.float32)
