"""This project's HASS draft behind transformers' verifier, beside the two in vLLM, which reads it by a plugin.

``parity run examples/pairs/engine_hass.py:HASS``, or ``:HASS_BF16``; ``VLLM_PYTHON`` as for ``engine.py``, of an
environment where this project is installed, or its checkout is in PYTHONPATH. ``HASS_DRAFT`` in the environment is a
folder with a draft of your own, which names its verifier.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import engine_draft as eagle3
import torch
from engine_draft import in_dtype_of, tiny
from torch import Tensor, nn

from parity import Pair, engine, tap
from parity.fixtures.architectures.architecture import llama_draft
from parity.names import NameMap
from ports.evaluate.drafter import open_draft
from ports.hass import HassDraftModel
from ports.hass.config import load_draft_config
from ports.training.alignment import Alignment

OWN = os.environ.get("HASS_DRAFT")
VERIFIER = eagle3.verifier_of(OWN)


@cache
def folder() -> Path:
    """Your own draft, or one of drawn weights, as training saves it."""
    if OWN:
        return Path(OWN)
    place, file = tiny.folder(VERIFIER).with_name("hass"), tiny.folder(VERIFIER).with_name("hass.json")
    file.write_text(json.dumps(llama_draft()))
    draft = HassDraftModel(load_draft_config(str(file), str(tiny.folder(VERIFIER)), 1, Alignment.CHAIN))
    torch.manual_seed(0)
    for name, value in draft.named_parameters():
        if value.requires_grad:
            nn.init.normal_(value, mean=float("norm" in name), std=0.2)
    draft.save_pretrained(place)
    return place


class Drafted(nn.Module):
    """A verifier and its draft."""

    def __init__(self, dtype: str = "float32") -> None:
        super().__init__()
        self.verifier = tiny.opened(VERIFIER, dtype)
        self.draft = in_dtype_of(self.verifier, open_draft(folder()))


def run(module: Drafted, batch: dict[str, Tensor]) -> Tensor:
    """The draft on a prompt's last states, each beside the token that follows, the last one beside the one chosen."""
    ids = batch["input_ids"]
    out = module.verifier(ids, output_hidden_states=True, use_cache=False)
    following = torch.cat([ids[:, 1:], out.logits[:, -1:].argmax(-1)], -1)
    states = tap("handed.hidden_states", out.hidden_states[-1])
    (step,) = module.draft(states, tap("handed.input_ids", following))
    tap("logprobs", out.logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0])
    return step.logits.mean()


def names() -> NameMap:
    """vLLM has the draft's layers in a model of its own, and calls the norm before the head otherwise."""
    parts = ("layers", "fc", "embed_tokens", "embed_layernorm", "hidden_layernorm")
    inner = {f"draft.{part}": f"draft.model.{part}" for part in parts}
    own = {"draft.lm_head_layernorm": "draft.model.output_layernorm", "draft.lm_head": "draft.lm_head", "draft": None}
    verifier = {"verifier.model": "model", "verifier.lm_head": "lm_head", "verifier": None}
    return engine.engine_names(Drafted(), {**verifier, **inner, **own})


def served(dtype: str = "float32", **options: Any) -> Pair:
    """``options`` are of the side in vLLM."""
    side = {"model": VERIFIER, "dtype": dtype, "drafter": folder(), "method": "eagle", **options}
    return eagle3.beside_vllm("hass", lambda: Drafted(dtype), run, names(), **side)


def eps(said: dict[str, Any]) -> None:
    """Of every norm."""
    said["transformer_layer_config"]["rms_norm_eps"] = 1e-2


FAULTS = {
    "eps": lambda: eagle3.changed("hass_eps", eps, source=folder()),
    "left random": lambda: eagle3.changed("hass_random", tensors=lambda held: held.pop("fc.weight"), source=folder()),
}
"""By name, a folder to serve with that fault."""

HASS, HASS_BF16 = served(), served("bfloat16")
