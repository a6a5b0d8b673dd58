"""A verifier's weights, refused where they are not what its config says."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from safetensors import safe_open

from ports.errors import InputError
from ports.files import check_regular, read_json
from ports.verifier.config import model_directory
from ports.verifier.trust import opening

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


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


def weight_files(name_or_path: str) -> list[Path]:
    """The safetensors that transformers and Speculators load, and no others that lie there; a hub id's are fetched.

    Raises:
        InputError: none; an index that names files outside the directory, or others than the one that lies there.
    """
    directory = model_directory(name_or_path, [INDEX])
    shards = sorted(set(weight_map(directory / INDEX).values())) if (directory / INDEX).exists() else [SINGLE]
    directory = model_directory(name_or_path, [*shards, SINGLE])
    files = [directory / shard for shard in shards]
    if shards != [SINGLE] and (directory / SINGLE).exists():  # transformers takes this file, Speculators the others
        raise InputError(directory, "weights", f"both {SINGLE} and an index of other files", "one of the two")
    for file in files:
        check_regular(file, "weights")
    if not files or not any(file.exists() for file in files):
        raise InputError(name_or_path, "weights", f"no {' or '.join(shards[:3])}", "a verifier's weights")
    return files


def weight_map(index: Path) -> dict[str, str]:
    """Which file every tensor is in; InputError for one outside the directory: nobody asked to read there."""
    places: dict[str, str] = read_json(index, "weight_map", "an object that maps tensors to shards")["weight_map"]
    for shard in places.values():
        if not shard or Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise InputError(index, "weight_map", shard, "files in the verifier's own directory")
    return places


def _names(directory: Path) -> list[str]:
    """Of all tensors, where Speculators looks for them."""
    files = weight_files(str(directory))
    if (directory / INDEX).is_file():
        return list(weight_map(directory / INDEX))
    with safe_open(files[0], "pt") as tensors:
        return list(tensors.keys())


def _is_untied(directory: Path) -> bool:
    """Does the config say so, and nothing else?"""
    config = read_json(directory / "config.json", "verifier", "a model directory or hub id")
    parts = [config, config.get("text_config")] if isinstance(config, dict) else []
    flags = [part["tie_word_embeddings"] for part in parts if isinstance(part, dict) and "tie_word_embeddings" in part]
    return bool(flags) and not any(flags)


def reading_weights(name_or_path: str) -> AbstractContextManager[None]:
    """What is wrong with a verifier's weights is bad input (InputError), whichever library meets it first."""
    return opening(name_or_path, "weights", "whole safetensors with embed_tokens and lm_head in the config's sizes")
