"""A verifier's tokenizer, its files, and how to know it again."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from ports.errors import InputError
from ports.verifier.config import model_directory, verifier_config
from ports.verifier.trust import opening, trusts_remote_code

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
)

SPECIAL_IDS = ("bos_token_id", "eos_token_id")

PROBE = "Hello, world!\n\n  x = 3.14; é漢🙂 <|eot_id|>"


def open_tokenizer(name_or_path: str) -> Any:
    """The verifier's tokenizer; InputError if it has none, or one that does not give ids or wants its own code run."""
    with opening(name_or_path, "tokenizer", "the verifier's tokenizer files (prompts of token ids need none)"):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trusts_remote_code())
        torch.tensor(tokenizer("Hello, world!")["input_ids"], dtype=torch.int64)
    return tokenizer


def special_ids(name_or_path: str) -> dict[str, Any]:
    """``bos_token_id`` and ``eos_token_id``: an id, several, or None.

    By the generation config; what it does not say, by the tokenizer; of a verifier without one, by its config.

    Raises:
        InputError: neither a directory with a config nor a hub id.
    """
    generation: Any = None
    with suppress(OSError, ValueError, TypeError):  # none there, or none that can be read
        generation = GenerationConfig.from_pretrained(name_or_path)
    found = {name: getattr(generation, name, None) for name in SPECIAL_IDS}
    if None in found.values():
        try:
            other: Any = open_tokenizer(name_or_path)
        except InputError:
            other = verifier_config(name_or_path)
        found = {name: getattr(other, name, None) if value is None else value for name, value in found.items()}
    return found


def tokenizer_files(name_or_path: str) -> list[Path]:
    """The verifier's tokenizer files, as they lie; empty when it has none."""
    directory = model_directory(name_or_path, TOKENIZER_FILES)
    return sorted({file for pattern in TOKENIZER_FILES for file in directory.glob(pattern) if file.is_file()})


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """16 hex digits from vocabulary, special tokens, chat template and how a fixed text is split."""
    content = {
        "vocabulary": tokenizer.get_vocab(),
        "special": {name: str(value) for name, value in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        "probe": tokenizer(PROBE)["input_ids"],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def end_tokens(verifier: Any) -> frozenset[int]:
    """The tokens that end an answer, by the verifier's generation config."""
    found = verifier.generation_config.eos_token_id
    return frozenset([found] if isinstance(found, int) else found or [])
