"""Suggested names: by the end of the name and the shape, and a list of what did not match."""

from __future__ import annotations

import torch
from torch import nn

from parity import suggest_names
from tests.parity.example import load


def tree(**parts: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(name, part)
    return module


def test_equal_names_need_no_map() -> None:
    suggestion = suggest_names(tree(a=nn.Linear(3, 4)), tree(a=nn.Linear(3, 4)))
    assert suggestion.complete
    assert suggestion.names.prefixes == {}


def test_the_end_of_a_name_and_the_shape_decide() -> None:
    original = tree(self_attn=tree(q=nn.Linear(4, 4), k=nn.Linear(4, 4)), mlp=tree(up=nn.Linear(4, 8)))
    port = tree(attention=tree(k=nn.Linear(4, 4), q=nn.Linear(4, 4)), ffn=tree(up=nn.Linear(4, 8)))
    names = suggest_names(original, port).names
    assert names.to_port("self_attn") == "attention"
    assert names.to_port("self_attn.q.weight") == "attention.q.weight"
    assert names.to_port("self_attn.k.bias") == "attention.k.bias"
    assert names.to_port("mlp.up") == "ffn.up"


def test_what_fits_two_places_stays_unmatched_with_its_candidates() -> None:
    original = tree(first=nn.Linear(4, 4, bias=False), second=nn.Linear(4, 4, bias=False))
    port = tree(one=nn.Linear(4, 4, bias=False), two=nn.Linear(4, 4, bias=False))
    suggestion = suggest_names(original, port)
    assert suggestion.unmatched_original == {
        "first.weight": ("one.weight", "two.weight"),
        "second.weight": ("one.weight", "two.weight"),
    }
    assert set(suggestion.unmatched_port) == {"one.weight", "two.weight"}
    assert suggestion.names.prefixes == {}


def test_another_shape_and_another_layer_do_not_match() -> None:
    original = tree(layers=nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), head=nn.Linear(4, 9))
    port = tree(h=nn.ModuleList([nn.Linear(4, 4)]), out=nn.Linear(4, 8))
    suggestion = suggest_names(original, port)
    assert suggestion.names.to_port("layers.0.weight") == "h.0.weight"
    assert suggestion.unmatched_original["layers.1.weight"] == ()
    assert suggestion.unmatched_original["head.weight"] == ()
    assert suggestion.unmatched_port["out.weight"] == ()


def test_the_example_s_layer_is_matched_as_far_as_shapes_allow() -> None:
    example = load()
    suggestion = suggest_names(example.ORIGINAL.build(), example.PORT.build())
    assert suggestion.names.to_port("mlp.down_proj.weight") == "feed_forward.w2.weight"
    assert suggestion.unmatched_original["self_attn.k_proj.weight"] == ("attention.wk.weight", "attention.wv.weight")
    wrong = [n for n, port in suggestion.names.prefixes.items() if port != load().NAMES.get(n, port)]
    assert wrong == []
    assert (
        "not matched, original: self_attn.k_proj.weight; same shape: attention.wk.weight, attention.wv.weight"
        in str(suggestion)
    )


def test_order_does_not_matter() -> None:
    torch.manual_seed(0)
    parts = {name: nn.Linear(4, 4) for name in "abc"}
    port = {f"{name}": nn.Linear(4, 4) for name in "cab"}
    names = suggest_names(tree(x=tree(**parts)), tree(y=tree(**port))).names
    assert [names.to_port(f"x.{name}") for name in "abc"] == ["y.a", "y.b", "y.c"]
