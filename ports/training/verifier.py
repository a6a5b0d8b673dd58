"""The verifier that a draft belongs to: where it lies, what it declares, its full head, its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from speculators.config import VerifierConfig
from speculators.utils.loading import load_model_layers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from ports.errors import InputError, reason
from ports.files import read_json

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
)


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
        read_json(
            directory / "config.json", "basepath", "a model directory or hub id"
        )  # transformers hides what is wrong with it
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
    """Refuse a verifier directory that Speculators cannot read weights from, or would read the wrong ones.

    Raises:
        InputError: an absent index, file or shard; no head, for which Speculators takes the embedding, although the
            config says that the two are not tied.
    """
    directory = Path(name_or_path)
    if not directory.is_dir():
        return
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        if (directory / "model.safetensors").is_file():
            _check_head(directory, directory / "model.safetensors", _names(directory / "model.safetensors"))
            return
        raise InputError(directory, index.name, "missing", "an index (or a single model.safetensors)")
    weight_map = _weight_map(index)
    _check_head(directory, index, weight_map)
    for shard in sorted(set(weight_map.values())):
        if not (directory / shard).is_file():
            raise InputError(index, "weight_map", f"{shard}, which does not exist", "shards that lie beside the index")


def _check_head(directory: Path, file: Path, names: Iterable[str]) -> None:
    try:
        config = json.loads((directory / "config.json").read_bytes())
        flags = [part["tie_word_embeddings"] for part in (config, config.get("text_config")) if _says_tied(part)]
    except (OSError, ValueError, AttributeError, RecursionError):  # said better by verifier_config
        return
    if flags and not any(flags) and not any(str(name).endswith("lm_head.weight") for name in names):
        raise InputError(file, "lm_head.weight", "missing", "the head of a verifier whose embeddings are not tied")


def _says_tied(part: Any) -> bool:
    return isinstance(part, dict) and "tie_word_embeddings" in part


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(file, "weights", str(error), "a safetensors file") from error


def _weight_map(index: Path) -> dict[str, str]:
    expected = "a non-empty object that maps tensors to shards"
    content = read_json(index, "weight_map", expected)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(index, "weight_map", repr(weight_map)[:80], expected)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or len(shard) > LONGEST_NAME:
            raise InputError(index, f"weight_map {name}", repr(shard)[:80], "the name of a file beside the index")
    return weight_map


LONGEST_NAME = 200
"""Longer names are no file's on any file system."""


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
    """The verifier's tokenizer.

    Raises:
        InputError: it has none, or one that does not give ids.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        torch.tensor(tokenizer("Hello, world!")["input_ids"], dtype=torch.int64)
    except Exception as error:  # what a missing or damaged tokenizer raises differs by its class
        expected = "the verifier's tokenizer files (prompts of token ids need none)"
        raise InputError(name_or_path, "tokenizer", reason(error), expected) from error
    return tokenizer


def tokenizer_files(name_or_path: str) -> list[Path]:
    """The verifier's tokenizer files, as they lie; empty when it has none."""
    directory = Path(name_or_path)
    if not directory.is_dir():
        directory = Path(snapshot_download(name_or_path, allow_patterns=list(TOKENIZER_FILES)))
    return sorted({file for pattern in TOKENIZER_FILES for file in directory.glob(pattern) if file.is_file()})
