"""A verifier's weights, refused where they are not what its config says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from speculators.utils.loading import load_model_layers
from torch import Tensor

from ports.errors import InputError, reason
from ports.files import check_regular, read_json


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
