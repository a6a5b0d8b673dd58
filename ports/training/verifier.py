"""The verifier that a draft belongs to: its config, its weights, its tokenizer, and how to know it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from speculators.config import VerifierConfig
from speculators.utils.loading import load_model_layers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from ports.errors import InputError, reason
from ports.files import check_regular, read_json

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
)

SAMPLE = 256
"""Bytes that a fingerprint reads at the start, in the middle and at the end of every tensor."""

PROBE = "Hello, world!\n\n  x = 3.14; é漢🙂 <|eot_id|>"


def verifier_config(name_or_path: str) -> Any:
    """The text model's config of a verifier directory or hub id (``text_config`` of a multimodal one, in whose config
    the precision may stand).

    Raises:
        InputError: a directory without ``config.json``, or with one that cannot be read.
    """
    directory = Path(name_or_path)
    if directory.exists():
        if not (directory / "config.json").is_file():
            raise InputError(directory, "basepath", "no config.json", "a Hugging Face model directory")
        read_json(directory / "config.json", "basepath", "a model directory or hub id")  # transformers hides why not
    try:
        config = AutoConfig.from_pretrained(name_or_path)
        VerifierConfig.from_config(config)  # a draft's config will name it
    except Exception as error:  # a damaged config.json makes transformers raise whatever its values run into
        raise InputError(name_or_path, "basepath", reason(error), "a model directory or hub id") from error
    text = config.get_text_config()
    if getattr(text, "dtype", None) is None:
        text.dtype = getattr(config, "dtype", None)
    return text


def check_weights_present(name_or_path: str) -> None:
    """Refuse a verifier directory that Speculators would read the wrong head from.

    Raises:
        InputError: no readable index or file of weights; no head, for which Speculators takes the embedding, although
            the config says that the two are not tied.
    """
    directory = Path(name_or_path)
    if not directory.is_dir():
        return
    with reading_weights(name_or_path):
        has_head = any(name.endswith("lm_head.weight") for name in _names(directory))
    if not has_head and _is_untied(directory):
        expected = "the head of a verifier whose embeddings are not tied"
        raise InputError(directory, "lm_head.weight", "missing", expected)


def _names(directory: Path) -> list[str]:
    """Of all tensors, where Speculators looks for them."""
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if index.is_file():
        weight_map = read_json(index, "weight_map", "an object that maps tensors to shards")["weight_map"]
        for shard in set(weight_map.values()):
            check_regular(directory / shard, "weights")
        return list(weight_map)
    check_regular(single, "weights")
    with safe_open(single, "pt") as tensors:
        return list(tensors.keys())


def _is_untied(directory: Path) -> bool:
    """Does the config say so, and nothing else?"""
    config = read_json(directory / "config.json", "basepath", "a model directory or hub id")
    parts = [config, config.get("text_config")] if isinstance(config, dict) else []
    flags = [part["tie_word_embeddings"] for part in parts if isinstance(part, dict) and "tie_word_embeddings" in part]
    return bool(flags) and not any(flags)


@contextmanager
def reading_weights(name_or_path: str) -> Iterator[None]:
    """What is wrong with a verifier's weights is bad input (InputError), whichever library meets it first."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # safetensors', torch's and Speculators' own
        expected = "whole safetensors with embed_tokens and lm_head in the config's sizes"
        raise InputError(name_or_path, "weights", reason(error), expected) from error


def full_head(name_or_path: str) -> Tensor:
    """The verifier's whole output head [V, h] in float32; a tied verifier's is its embedding."""
    weights = load_model_layers(["lm_head.weight", "embed_tokens.weight"], name_or_path)
    return weights.get("lm_head.weight", weights["embed_tokens.weight"]).float()


def open_tokenizer(name_or_path: str) -> Any:
    """The verifier's tokenizer; InputError if it has none, or one that does not give ids."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        torch.tensor(tokenizer("Hello, world!")["input_ids"], dtype=torch.int64)
    except Exception as error:  # what a missing or damaged tokenizer raises differs by its class
        expected = "the verifier's tokenizer files (prompts of token ids need none)"
        raise InputError(name_or_path, "tokenizer", reason(error), expected) from error
    return tokenizer


def tokenizer_files(name_or_path: str) -> list[Path]:
    """The verifier's tokenizer files, as they lie; empty when it has none."""
    directory = _directory(name_or_path, TOKENIZER_FILES)
    return sorted({file for pattern in TOKENIZER_FILES for file in directory.glob(pattern) if file.is_file()})


def _directory(name_or_path: str, patterns: Sequence[str]) -> Path:
    """Where the files lie; those of a hub id are fetched."""
    path = Path(name_or_path)
    return path if path.is_dir() else Path(snapshot_download(name_or_path, allow_patterns=list(patterns)))


def verifier_fingerprint(name_or_path: str) -> str:
    """16 hex digits from every tensor's name, dtype, shape and a sample of its bytes; shards do not matter.

    Raises:
        InputError: no readable safetensors there.
    """
    with reading_weights(name_or_path):
        files = sorted(_directory(name_or_path, ["*.safetensors", "*.json"]).glob("*.safetensors"))
        for file in files:
            check_regular(file, "weights")
        tensors = dict(entry for file in files for entry in _tensors(file))
    if not tensors:
        raise InputError(name_or_path, "weights", "no *.safetensors", "a verifier's weights")
    digest = hashlib.sha256()
    for name, content in sorted(tensors.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def _tensors(file: Path) -> Iterator[tuple[str, bytes]]:
    """Every tensor's name, and what is known of it; the file is mapped, so that only samples are read."""
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (no iteration)
            entry, numbers = tensors.get_slice(name), tensors.get_tensor(name).flatten().view(torch.uint8)
            middle = len(numbers) // 2
            places = (slice(SAMPLE), slice(middle, middle + SAMPLE), slice(-SAMPLE, None))
            sample = b"".join(numbers[place].numpy().tobytes() for place in places)
            whole = numbers.numpy().tobytes() if len(numbers) <= 3 * SAMPLE else sample
            yield name, f"{entry.get_dtype()}\0{entry.get_shape()}\0".encode() + whole


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """16 hex digits from vocabulary, special tokens, chat template and how a fixed text is split."""
    content = {
        "vocabulary": tokenizer.get_vocab(),
        "special": {name: str(value) for name, value in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        "probe": tokenizer(PROBE)["input_ids"],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
