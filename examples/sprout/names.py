"""The prototype's names of modules and parameters to the port's."""

from __future__ import annotations

from parity import Fused, NameMap


def third(number: int) -> Fused:
    """Query, key or value out of the fused weight [3h, h]."""
    port = f"self_attn.{'qkv'[number]}_proj.weight"
    return Fused(port, ("mixer.qkv.weight",), lambda tensors: tensors[0].chunk(3)[number])


NAMES = NameMap(
    {
        "": None,
        "words": "embed_tokens",
        "join": "fc",
        "pre": "input_layernorm",
        "pre.g": "input_layernorm.weight",
        "mixer": "self_attn",
        "mixer.proj": "self_attn.o_proj",
        "mixer.qkv": None,
        "bud": "mlp",
        "post": "norm",
        "post.g": "norm.weight",
        "head": "lm_head.weight",
    },
    fused=[third(number) for number in range(3)],
    only_port=["rotary_emb"],
)
