"""The draft that a verifier gets if nobody says otherwise: one Llama layer in its sizes."""

from __future__ import annotations

from typing import Any

MLP = 6
"""Times the hidden size: the MLP of the draft of a verifier that names experts' widths alone.

SpecForge's configs have it for gpt-oss (h 2,880, experts 2,880, MLP 17,280) and Qwen 3's 30B-A3B and 235B-A22B
(``configs/*-eagle3.json`` of github.com/sgl-project/SpecForge).
"""

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERT_WIDTHS = ("moe_intermediate_size", "expert_ffn_hidden_size")
"""What configs of experts call their number, and their width where ``intermediate_size`` is a dense MLP's."""


def derived_config(verifier: Any) -> dict[str, Any]:
    """One Llama layer in the verifier's sizes and rotary embedding, as the prototypes' draft JSON has it.

    Args:
        verifier: the config of a model that reads and writes text, of any class of transformers.
    """
    names = ("hidden_size", "vocab_size", "max_position_embeddings", "rms_norm_eps")
    found = {name: getattr(verifier, name, None) for name in (*names, "rope_parameters", "rope_theta", "rope_scaling")}
    if rope := found["rope_parameters"]:  # by kind of layer, where a verifier has several
        rope = dict(rope.get("full_attention", rope))
        if rope.pop("partial_rotary_factor", 1) != 1:  # a Llama layer turns whole heads
            rope = {"rope_theta": rope["rope_theta"]}
        found |= {"rope_parameters": rope, "rope_theta": None, "rope_scaling": None}
    found |= {"intermediate_size": mlp_width(verifier), **_heads(verifier)}
    said = {name: value for name, value in found.items() if value is not None}
    return {"model_type": "llama", **said, "num_hidden_layers": 1, "hidden_act": "silu", "tie_word_embeddings": False}


def mlp_width(verifier: Any) -> int:
    """The width of the verifier's dense MLP, of its widest layer; :data:`MLP` times h where its config names none.

    With experts, ``intermediate_size`` is a dense MLP's only beside a width that is the experts' own
    (:data:`EXPERT_WIDTHS`); Llama 4 calls the dense one ``intermediate_size_mlp``.
    """
    dense = [
        getattr(verifier, name, None) for name in ("intermediate_size_mlp", "intermediate_size", "ffn_hidden_size")
    ]
    if any(getattr(verifier, name, None) for name in EXPERTS):
        named = any(getattr(verifier, name, None) for name in EXPERT_WIDTHS)
        dense = dense if named else dense[:1]
    found = next((width for width in dense if width), MLP * verifier.hidden_size)
    return max(found) if isinstance(found, list | tuple) else found


def _heads(verifier: Any) -> dict[str, int | None]:
    """The verifier's; but transformers' Llama takes only numbers of heads that divide h (GLM 4.5 has 96 of 128 at
    h 4,096): the most that do, in whole groups for the keys."""
    heads, width = verifier.num_attention_heads, getattr(verifier, "head_dim", None)
    groups = getattr(verifier, "num_key_value_heads", None) or heads
    fitting = [n for n in range(heads, 0, -1) if verifier.hidden_size % n == 0 and n % groups == 0]
    if not fitting:
        fitting, groups = divisors_up_to(verifier.hidden_size, heads), None
    return {"num_attention_heads": fitting[0], "num_key_value_heads": groups, "head_dim": width}


def divisors_up_to(size: int, most: int) -> list[int]:
    """Of ``size``, the largest first."""
    return [number for number in range(min(size, most), 0, -1) if size % number == 0]
