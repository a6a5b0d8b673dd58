"""A verifier's config, and where its files lie."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from speculators.config import VerifierConfig
from transformers import AutoConfig

from ports.errors import InputError
from ports.files import read_json
from ports.verifier.trust import opening, trusts_remote_code

ID = re.compile(r"(?!.*(?:--|\.\.))\w[\w.-]*(?:/\w[\w.-]*)?")


def full_config(name_or_path: str) -> Any:
    """The config of a verifier directory or hub id, as it stands.

    Raises:
        InputError: a directory without ``config.json``, or with one that cannot be read or wants code of its own run.
    """
    directory = Path(name_or_path)
    if not directory.exists():
        return _read(name_or_path)
    file = directory / "config.json"
    if not file.is_file():
        raise InputError(directory, "verifier", "no config.json", "a Hugging Face model directory")
    read_json(file, "verifier", "a model directory or hub id")  # transformers hides why not
    content = file.read_bytes()
    return _read(name_or_path) if b"auto_map" in content else copy.deepcopy(_unchanged(name_or_path, content))


@lru_cache(maxsize=1)
def _unchanged(name_or_path: str, content: bytes) -> Any:
    """What was read last, while the file holds the same: a run asks several times, and may change what it gets."""
    return _read(name_or_path)


def _read(name_or_path: str) -> Any:
    with opening(name_or_path, "verifier", "a model directory or hub id"):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trusts_remote_code())
        VerifierConfig.from_config(config)  # a draft's config will name it
    if type(config).__module__.startswith("transformers_modules."):  # Speculators opens it again, and would ask
        AutoConfig.register(config.model_type, type(config), exist_ok=True)
    return config


def verifier_config(name_or_path: str) -> Any:
    """The text model's config (``text_config`` of a multimodal one, in whose config the precision may stand).

    Raises:
        InputError: as :func:`full_config`.
    """
    config = full_config(name_or_path)
    text = config.get_text_config()
    if getattr(text, "dtype", None) is None:
        text.dtype = getattr(config, "dtype", None)
    return text


def hub_id(name: str) -> str | None:
    """The hub's name of a verifier or data set: of an id itself, also of a snapshot in the hub's cache; of no other
    directory or file."""
    if os.path.exists(name):
        cached = re.search(r"/(?:models|datasets)--([^/]+?)(?:--([^/]+))?/snapshots/", f"{Path(name).resolve()}/")
        return "/".join(filter(None, cached.groups())) if cached else None
    return name if ID.fullmatch(name) else None


def model_directory(name_or_path: str, patterns: Sequence[str]) -> Path:
    """Where the files lie; those of a hub id are fetched."""
    path = Path(name_or_path)
    return path if path.is_dir() else Path(snapshot_download(name_or_path, allow_patterns=list(patterns)))
