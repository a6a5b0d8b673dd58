"""Masks from positions, against every pair of slots looked at by itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ports.evaluate.memory import Memory
from ports.evaluate.sight import check_types, sight

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_type_of_layer_has_its_mask(memory, dtype):
    masks = sight(CONFIG, memory, WIDTH, dtype)
    assert masks.keys() == {"full_attention", "sliding_attention", "chunked_attention"}
    for kind, mask in masks.items():
        expected = seen(memory, kind)
        assert mask.dtype == dtype
        assert torch.equal(mask == 0, expected), kind
        assert (mask[~expected] == torch.finfo(dtype).min).all()
        assert expected.any()
        assert not expected.all()
    assert not torch.equal(masks["sliding_attention"], masks["chunked_attention"])


def test_the_oracle_sees_slots_taken_for_positions(memory):
    """The planted fault."""
    expected = {kind: seen(memory, kind) for kind in CONFIG.layer_types}
    memory.positions = torch.arange(memory.slots).expand_as(memory.positions)
    masks = sight(CONFIG, memory, WIDTH, torch.float32)
    assert not torch.equal(masks["sliding_attention"] == 0, expected["sliding_attention"])
    assert not torch.equal(masks["chunked_attention"] == 0, expected["chunked_attention"])


@pytest.mark.parametrize("types", [None, ["full_attention"] * 2])
def test_where_every_layer_sees_all_the_owned_slots_are_enough(memory, types):
    mask = sight(SimpleNamespace(layer_types=types), memory, WIDTH, torch.float32)
    assert torch.equal(mask, memory.owned.long())


def test_what_is_taken_back_takes_its_positions_along(memory):
    before = memory.positions.clone()
    memory.cache = SimpleNamespace(crop=lambda count: None)
    memory.crop(7)
    assert torch.equal(memory.positions, before[:, :7])
    assert memory.owned.shape == memory.positions.shape == (2, 7)


def test_layers_that_keep_something_else_are_refused(refuses):
    check_types("verifier", CONFIG)
    with refuses("verifier", "layer_types", "linear_attention", "full_attention, sliding_attention, chunked_attention"):
        check_types("verifier", SimpleNamespace(layer_types=["linear_attention", "full_attention"]))
