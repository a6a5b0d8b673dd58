"""Open a verifier for decoding, and say how far it can read."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ports.errors import InputError
from ports.evaluate.sight import check_types, local_types
from ports.training.verifier import reading_weights, verifier_config


def open_verifier(name_or_path: str, dtype: str, device: torch.device) -> Any:
    """The model in eval mode; ``dtype`` is a name of torch's or auto.

    Raises:
        InputError: it cannot be read.
    """
    with reading_weights(name_or_path):
        model: Any = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype)
    return model.eval().to(device)


def end_tokens(verifier: Any) -> frozenset[int]:
    """The tokens that end an answer, by the verifier's generation config."""
    found = verifier.generation_config.eos_token_id
    return frozenset([found] if isinstance(found, int) else found or [])


def longest_prompt(name_or_path: str, length: int, size: int) -> int:
    """How long a prompt may be when ``length`` tokens follow and proposals of ``size`` reach past them.

    Rejected proposals leave holes in the cache, in the worst case one for each token of a proposal after every token.
    A verifier that counts holes as positions is only read as far as that changes nothing: a window that its config
    gives to no layer by name, and Llama 4's attention that gets sharper with the length.

    Raises:
        InputError: there is no room for any prompt, or layers that cannot forget rejected tokens.
    """
    config = verifier_config(name_or_path)
    check_types(name_or_path, config)
    slots = length * (size + 1)
    room = config.max_position_embeddings - length - size
    if _has_window(config):
        room = min(room, config.sliding_window - slots)
    if getattr(config, "attn_temperature_tuning", False):
        room = min(room, config.floor_scale - 1 - slots)
    if room < 1:
        raise InputError(name_or_path, "--tokens", length, f"less: the verifier has no room for {1 - room} of them")
    return int(room)


def _has_window(config: Any) -> bool:
    window = getattr(config, "sliding_window", None)
    return not local_types(config) and window is not None and getattr(config, "use_sliding_window", True)
