"""Masks from positions, against every pair of slots looked at by itself, and how far a verifier reads."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from ports.evaluate.decode import Limits, decode, decode_speculatively
from ports.evaluate.verifier import Memory, layer_types, longest_prompt, open_verifier
from tests.ports.evaluate.plain import continue_greedily
from tests.ports.evaluate.test_decode import Scripted

WINDOW, CHUNK, WIDTH = 3, 4, 2
CONFIG = SimpleNamespace(
    layer_types=["sliding_attention", "full_attention", "chunked_attention"],
    sliding_window=WINDOW,
    attention_chunk_size=CHUNK,
)


@pytest.fixture
def memory() -> Memory:
    """A prompt of 6 and one of 4 tokens, then two proposals of which each row keeps another part."""
    found = Memory(2, torch.device("cpu"))
    places = torch.arange(6).expand(2, 6)
    found.announce(places < torch.tensor([[6], [4]]), places)
    for starts, kept in (((6, 4), (2, 1)), ((8, 5), (1, 2))):
        positions = torch.tensor(starts)[:, None] + torch.arange(WIDTH)
        found.announce(torch.ones_like(positions, dtype=torch.bool), positions)
        found.keep(torch.arange(WIDTH) < torch.tensor(kept)[:, None])
    return found


def seen(memory: Memory, kind: str) -> torch.Tensor:
    """bool [B, 1, Q, K], one pair after the other."""
    rows, slots = memory.owned.shape
    mask = torch.zeros(rows, 1, WIDTH, slots, dtype=torch.bool)
    for row in range(rows):
        for query in range(slots - WIDTH, slots):
            for key in range(query + 1):
                here, there = int(memory.positions[row, query]), int(memory.positions[row, key])
                near = {
                    "full_attention": True,
                    "sliding_attention": there in range(here - WINDOW + 1, here + 1),
                    "chunked_attention": here // CHUNK == there // CHUNK,
                }[kind]
                mask[row, 0, query - slots + WIDTH, key] = near and memory.owned[row, key]
    return mask


def masks_of(memory: Memory, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {kind: memory.mask(WIDTH, kind, CONFIG, dtype) for kind in layer_types(CONFIG)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_type_of_layer_has_its_mask(memory, dtype):
    masks = masks_of(memory, dtype)
    assert masks.keys() == {"full_attention", "sliding_attention", "chunked_attention"}
    for kind, mask in masks.items():
        expected = seen(memory, kind)
        assert mask.dtype == dtype
        assert torch.equal(mask == 0, expected), kind
        assert (mask[~expected] == torch.finfo(dtype).min).all()
        assert expected.any()
        assert not expected.all()
    wanted = {kind: seen(memory, kind) for kind in ("sliding_attention", "chunked_attention")}
    memory.positions = torch.arange(memory.slots).expand_as(memory.positions)  # the planted fault: slots for positions
    assert not any(torch.equal(masks_of(memory, dtype)[kind] == 0, mask) for kind, mask in wanted.items())


@pytest.mark.parametrize(
    ("config", "types"),
    [
        ({}, ["full_attention"]),
        ({"layer_types": ["full_attention"] * 2, "sliding_window": 3}, ["full_attention"]),
        ({"layer_types": None, "sliding_window": 3}, ["sliding_attention"]),
        ({"sliding_window": 3, "use_sliding_window": False}, ["full_attention"]),
        ({"layer_types": ["sliding_attention", "full_attention"]}, ["full_attention", "sliding_attention"]),
    ],
)
def test_the_types_of_layers_that_a_config_has(config, types):
    assert layer_types(SimpleNamespace(**config)) == types


@pytest.fixture
def windowed(pair, fixture, cpu):
    """The verifier's weights in a Mistral, whose config gives a window to all layers without naming their types."""
    config = json.loads((fixture / "verifier" / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 4}
    (fixture / "verifier" / "config.json").write_text(json.dumps(config))
    return open_verifier(str(fixture / "verifier"), "float32", cpu)


def test_one_window_for_all_layers_changes_no_token(windowed, fixture, pair, prompts):
    """Against passes without a cache, for which transformers makes the masks; prompts exceed the window."""
    wanted = [continue_greedily(windowed, prompt, 40) for prompt in prompts]
    assert wanted != [continue_greedily(pair.judge, prompt, 40) for prompt in prompts]
    drafter = Scripted(pair.drafter, prompts, [prompt + more for prompt, more in zip(prompts, wanted)])
    for found in (
        decode(windowed, prompts, Limits(20)),
        decode_speculatively(windowed, drafter, prompts, Limits(20), 3),
    ):
        assert [answer.tokens for answer in found] == [tokens[:20] for tokens in wanted]
    assert longest_prompt(str(fixture / "verifier"), 10, 3) == 512 - 10 - 3
