"""Which positions a verifier's layers see, and how long a text may be that they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ports.errors import InputError
from ports.verifier.config import verifier_config

GLOBAL = "full_attention"
LOCAL: dict[str, tuple[str, Callable[[Tensor, Tensor, int], Tensor]]] = {
    "sliding_attention": ("sliding_window", lambda query, key, size: query - key < size),
    "chunked_attention": ("attention_chunk_size", lambda query, key, size: query // size == key // size),
}
"""By a layer's type: the key of the config that holds the size, and which positions are near enough to be seen."""


def layer_types(config: Any) -> list[str]:
    """The types of attention in a text model; older configs have one window for all layers and name no types."""
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return sorted(set(getattr(config, "layer_types", None) or ["sliding_attention" if windowed else GLOBAL]))


def longest_prompt(name_or_path: str, length: int, size: int) -> int:
    """How long a prompt may be when ``length`` tokens follow and proposals of ``size`` reach past them.

    Llama 4's attention that gets sharper with the length counts holes as positions, in the worst case one for each
    token of a proposal after every token, and is only read as far as that changes nothing.

    Raises:
        InputError: no room for any prompt, or layers whose state of rejected tokens could not be taken back.
    """
    config = verifier_config(name_or_path)
    unknown = [kind for kind in layer_types(config) if kind not in (GLOBAL, *LOCAL)]
    if unknown:
        expected = f"{', '.join([GLOBAL, *LOCAL])}: what other layers keep of rejected tokens cannot be taken back"
        raise InputError(name_or_path, "layer_types", unknown[0], expected)
    room = config.max_position_embeddings - length - size
    if getattr(config, "attn_temperature_tuning", False):
        room = min(room, config.floor_scale - 1 - length * (size + 1))
    if room < 1:
        raise InputError(
            name_or_path, "--max-new-tokens", length, f"less: the verifier has no room for {1 - room} of them"
        )
    return int(room)
