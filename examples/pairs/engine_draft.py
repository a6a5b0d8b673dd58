"""Speculators' Eagle3 draft behind transformers' verifier, beside the two in vLLM.

``parity run examples/pairs/engine_draft.py:EAGLE3``, or ``:EAGLE3_BF16``; ``VLLM_PYTHON`` as for ``engine.py``.
``EAGLE3_DRAFT`` in the environment is a folder with a draft of your own, which names its verifier.
"""

from __future__ import annotations

import ports  # noqa: F401  # isort: skip  (a torchaudio of another build must not break transformers)

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import engine as tiny
import torch
from safetensors.torch import load_file, save_file
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor, nn
from transformers import LlamaConfig

from parity import Case, EngineSide, Pair, Side, engine, tap
from parity.fixtures.architectures.architecture import llama_draft
from parity.names import NameMap

KEPT = 2
"""Every second token has a place in the draft's vocabulary."""


def verifier_of(draft: str | None) -> str:
    """The folder that a draft names; without one, a tiny model's name."""
    said = json.loads((Path(draft) / "config.json").read_text()) if draft else None
    return str(said["speculators_config"]["verifier"]["name_or_path"]) if said else "llama"


OWN = os.environ.get("EAGLE3_DRAFT")
VERIFIER = verifier_of(OWN)
LAYERS = Eagle3DraftModel.config_class.from_pretrained(OWN).eagle_aux_hidden_state_layer_ids if OWN else [2, 4, 5]


@cache
def folder() -> Path:
    """Your own draft, or one of drawn weights, as Speculators saves it."""
    if OWN:
        return Path(OWN)
    place, size = tiny.folder(VERIFIER).with_name("eagle3"), llama_draft()["vocab_size"]
    t2d = torch.arange(size) % KEPT == 0
    draft = Eagle3DraftModel.from_training_args(
        LlamaConfig(**{name: value for name, value in llama_draft().items() if name != "model_type"}),
        norm_before_residual=True,
        t2d=t2d,
        d2t=t2d.nonzero()[:, 0] - torch.arange(size // KEPT),
        draft_vocab_size=size // KEPT,
        ttt_steps=1,
        target_layer_ids=LAYERS,
        verifier_name_or_path=str(tiny.folder(VERIFIER)),
        draft_attn_impl="sdpa",
    )
    torch.manual_seed(0)
    for name, value in draft.requires_grad_(True).named_parameters():
        nn.init.normal_(value, mean=float("norm" in name), std=0.2)
    draft.save_pretrained(place)
    return place


class Drafted(nn.Module):
    """A verifier and its draft."""

    def __init__(self, dtype: str = "float32") -> None:
        super().__init__()
        config = Eagle3DraftModel.config_class.from_pretrained(folder())
        config.transformer_layer_config._attn_implementation = "sdpa"
        self.verifier = tiny.opened(VERIFIER, dtype)
        self.draft = in_dtype_of(self.verifier, Eagle3DraftModel.from_pretrained(folder(), config=config))


def in_dtype_of(verifier: nn.Module, draft: nn.Module) -> nn.Module:
    """A draft as vLLM runs it: weights in the verifier's precision, rotary frequencies in float32."""
    for weight in draft.parameters():
        weight.data = weight.data.to(verifier.dtype)
    return draft


def run(module: Drafted, batch: dict[str, Tensor]) -> Tensor:
    """The draft on a prompt's features, each beside the token that follows; the last beside the verifier's choice."""
    ids = batch["input_ids"]
    out = module.verifier(ids, output_hidden_states=True, use_cache=False)
    features = torch.cat([out.hidden_states[layer] for layer in LAYERS], -1)
    following = torch.cat([ids[:, 1:], out.logits[:, -1:].argmax(-1)], -1)
    module.draft(
        hidden_states=tap("handed.hidden_states", features),
        input_ids=tap("handed.input_ids", following),
        document_ids=torch.zeros_like(ids),
        position_ids=torch.arange(ids.shape[1])[None],
        ttt_steps=1,
    )
    tap("logprobs", out.logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0])
    return out.logits.mean()


def names() -> NameMap:
    """vLLM has the draft's layers in a model of its own, and the verifier's copies that Speculators trains with not."""
    inner = {f"draft.{part}": f"draft.model.{part}" for part in ("layers", "fc", "norm", "embed_tokens")}
    own = {"draft.d2t": "draft.draft_id_to_target_id", "draft.lm_head": "draft.lm_head", "draft": None}
    return engine.engine_names(
        Drafted(), {"verifier.model": "model", "verifier.lm_head": "lm_head", "verifier": None, **inner, **own}
    )


def beside_vllm(
    name: str, build: Callable[[], nn.Module], step: Callable[..., Tensor], names: NameMap, **side: Any
) -> Pair:
    """The pair of a verifier with its draft and the two in vLLM; ``side`` has that side's options."""
    verifier, dtype = side["model"], side["dtype"]
    rotary = "transformers.models.llama.modeling_llama:apply_rotary_pos_emb"
    taps = {rotary: {"returned.0": "rotated.query", "returned.1": "rotated.key"}}
    return Pair(
        f"engine-{name}",
        Side(build, step, taps=taps, backward=False, name="speculators"),
        EngineSide(**{**side, "model": tiny.folder(verifier), "python": tiny.PYTHON}),
        cases=lambda: [Case(name, [{"input_ids": tiny.prompts(verifier, dtype)[:1]}], steps=1)],
        names=names,
        views=engine.VIEWS,
        checks=engine.CHECKS,
    )


def served(dtype: str = "float32", **options: Any) -> Pair:
    """``options`` are of the side in vLLM."""
    side = {"model": VERIFIER, "dtype": dtype, "drafter": folder(), **options}
    return beside_vllm("eagle3", lambda: Drafted(dtype), run, names(), **side)


def changed(
    name: str,
    config: Callable[[dict[str, Any]], Any] = id,
    tensors: Callable[..., Any] = id,
    source: Path | None = None,
) -> Path:
    """A copy of the draft in ``source``, the one above, whose config or tensors are others."""
    copy = shutil.copytree(source or folder(), folder().with_name(name), dirs_exist_ok=True)
    said, held = json.loads((copy / "config.json").read_text()), load_file(copy / "model.safetensors")
    config(said)
    tensors(held)
    (copy / "config.json").write_text(json.dumps(said))
    save_file(held, copy / "model.safetensors", {"format": "pt"})
    return copy


FAULTS: dict[str, Callable[[], Path]] = {
    "norm after": lambda: changed("after", lambda said: said.update(norm_before_residual=False)),
    "another layer": lambda: changed("layer", lambda said: said.update(eagle_aux_hidden_state_layer_ids=[1, 4, 5])),
    "partial rotary factor": lambda: changed(
        "rotary", lambda said: said["transformer_layer_config"]["rope_parameters"].update(partial_rotary_factor=0.5)
    ),
    "map shifted": lambda: changed("map", tensors=lambda held: held.update(d2t=held["d2t"] + 1)),
    "left random": lambda: changed("random", tensors=lambda held: held.pop("fc.weight")),
}
"""By name, a folder to serve with that fault: ``served(drafter=FAULTS["map shifted"]())``."""

EAGLE3, EAGLE3_BF16 = served(), served("bfloat16")
