"""A model of your own: transformers beside vLLM, and what bfloat16 alone does to its log-probabilities.

``MODEL=FOLDER parity run examples/pairs/engine_own.py:FLOAT32``, or ``:BFLOAT16``, with ``VLLM_PYTHON`` as for
``engine.py``. ``:ROUNDING`` needs no vLLM: in bfloat16, transformers' own two attentions, and the same weights in
float32.
"""

from __future__ import annotations

import ports  # noqa: F401  # isort: skip  (a torchaudio of another build must not break transformers)

import os
import shlex
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from parity import Case, EngineSide, Pair, Side, engine
from parity.errors import InputError

FOLDER, PYTHON = os.environ["MODEL"], shlex.split(os.environ.get("VLLM_PYTHON", ""))
PROMPTS, LENGTH = 4, 64


def opened(dtype: str, attention: str = "eager") -> nn.Module:
    """As transformers opens it."""
    return AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=getattr(torch, dtype), attn_implementation=attention
    ).eval()


def text() -> Tensor:
    """int64 [PROMPTS, LENGTH]: what this file says."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    except (OSError, ValueError) as error:
        raise InputError(FOLDER, "tokenizer", "none that transformers opens", "the model's tokenizer files") from error
    ids = tokenizer(Path(__file__).read_text())["input_ids"]
    return torch.tensor(ids[: PROMPTS * LENGTH]).view(PROMPTS, LENGTH)


def plain(dtype: str, attention: str = "eager") -> Side:
    """transformers."""
    return Side(lambda: opened(dtype, attention), engine.likelihood, backward=False, name=f"{attention}-{dtype}")


def cases() -> list[Case]:
    return [Case("text", [{"input_ids": text()}], steps=1)]


def pair(dtype: str) -> Pair:
    """With vLLM."""
    with torch.device("meta"):
        names = engine.engine_names(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(FOLDER)))
    served = EngineSide(FOLDER, dtype, python=PYTHON)
    return Pair(f"own-{dtype}", plain(dtype), served, cases, names=names, checks=engine.CHECKS)


FLOAT32, BFLOAT16 = pair("float32"), pair("bfloat16")
EXACT = Side(lambda: opened("bfloat16").float(), engine.likelihood, backward=False, name="float32")
ROUNDING = Pair("rounding", plain("bfloat16"), EXACT, cases, sides=[plain("bfloat16", "sdpa")], checks=engine.CHECKS)
