"""transformers' models beside vLLM's own implementation of them: ``parity run examples/pairs/engine.py:QWEN3``.

``VLLM_PYTHON`` in the environment is the command of an interpreter that has vLLM and parity, by default this one.
"""

from __future__ import annotations

import ports  # noqa: F401  # isort: skip  (a torchaudio of another build must not break transformers)

import atexit
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from parity import Case, EngineSide, Fused, Pair, Side, View, engine
from parity.fixtures.architectures import ARCHITECTURES, build_architecture, plainer

PYTHON = shlex.split(os.environ.get("VLLM_PYTHON", ""))
MODELS = {**ARCHITECTURES, "qwen3": plainer("qwen3"), "qwen3_biased": ARCHITECTURES["qwen3"]}
PROMPTS, LENGTH, ANSWER = 2, 20, 6


@cache
def folder(name: str) -> Path:
    """A tiny model with the tokenizer that belongs to it; a folder's name is that folder."""
    if Path(name).is_dir():
        return Path(name)
    place = tempfile.TemporaryDirectory()
    atexit.register(place.cleanup)
    return build_architecture(MODELS[name], Path(place.name) / name)


def without(name: str, tensor: str) -> Path:
    """The same model, whose files lack a tensor."""
    lacking = shutil.copytree(folder(name), folder(name).with_name(f"{name} without {tensor}"), dirs_exist_ok=True)
    for file in lacking.glob("*.safetensors"):
        held = load_file(file)
        held.pop(tensor, None)
        save_file(held, file, {"format": "pt"})
    return lacking


def opened(name: str, dtype: str) -> nn.Module:
    """As transformers opens it."""
    return AutoModelForCausalLM.from_pretrained(
        folder(name), dtype=getattr(torch, dtype), attn_implementation="eager"
    ).eval()


def prompts(name: str, dtype: str) -> Tensor:
    """[PROMPTS, LENGTH + ANSWER]: drawn ids, and what transformers answers."""
    ids = torch.randint(0, 500, (PROMPTS, LENGTH), generator=torch.Generator().manual_seed(0))
    return opened(name, dtype).generate(ids, max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False)


def gpt_oss(empty: nn.Module) -> tuple[dict[str, str | None], list[Fused]]:
    """vLLM's own names of its parts, and its experts' matrices, the other way round."""
    names: dict[str, str | None] = {"model.embed_tokens": "model.embedding"}
    experts = []
    for name in dict(empty.named_modules()):
        if name.endswith(".self_attn"):
            names[name] = name.replace("self_attn", "attn")
        if name.endswith(".experts"):
            for mine, port in (("gate_up_proj", "w13"), ("down_proj", "w2")):
                own = f"{name}.routed_experts.{port}"
                experts.append(Fused(f"{own}_weight", (f"{name}.{mine}",), lambda held: held[0].transpose(1, 2)))
                names[f"{name}.{mine}_bias"] = f"{own}_bias"
    return names, experts


BY_TOKEN = [
    View(f"mb0.call.*.mlp.{part}#0.*", original=lambda held, trace: held.unflatten(0, (PROMPTS, -1)))
    for part in ("router", "experts")
]
"""A mixture of experts sees one token after the other in transformers."""


def pair(name: str, dtype: str = "float32", **engine_options: Any) -> Pair:
    """Of a model; ``engine_options`` are of its side in vLLM."""
    family = MODELS[name].name
    rotary = f"transformers.models.{family}.modeling_{family}:apply_rotary_pos_emb"
    original = Side(
        lambda: opened(name, dtype),
        engine.likelihood,
        taps={rotary: {"returned.0": "rotated.query", "returned.1": "rotated.key"}},
        backward=False,
        name="transformers",
    )
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder(name)))
    return Pair(
        f"engine-{name}",
        original,
        EngineSide(**{"model": folder(name), "dtype": dtype, "answer": ANSWER, "python": PYTHON, **engine_options}),
        cases=lambda: [Case(name, [{"input_ids": prompts(name, dtype)}], steps=1)],
        names=engine.engine_names(empty, *(gpt_oss(empty) if name == "gpt_oss" else ())),
        views=[*engine.VIEWS, *BY_TOKEN],
        checks=engine.CHECKS,
    )


def overridden(name: str, **changes: Any) -> dict[str, Any]:
    """Options of a side whose config says something else; what is below ``rope_parameters`` beside what it holds."""
    config = AutoConfig.from_pretrained(folder(name))
    rope = {"rope_parameters": {**config.rope_parameters, **changes.pop("rope", {})}}
    return {"engine": {"hf_overrides": {**rope, **changes}}}


FAULTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "rope theta": lambda name: overridden(name, rope={"rope_theta": 5e5}),
    "partial rotary factor": lambda name: overridden(name, rope={"partial_rotary_factor": 0.5}),
    "eps": lambda name: overridden(name, rms_norm_eps=1e-6),
    "left random": lambda name: {"model": without(name, "model.layers.3.mlp.up_proj.weight")},
}
"""By name, from a model to the options of a side with that fault: ``pair("qwen3", **FAULTS["eps"]("qwen3"))``."""

LLAMA, QWEN3, GPT_OSS = map(pair, ("llama", "qwen3", "gpt_oss"))
QWEN3_BF16 = pair("qwen3", "bfloat16")
