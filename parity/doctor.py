"""Explain the environment to somebody whose run surprised them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from parity.environment import describe
from parity.pair import Pair

OPTIONAL = {
    "deepspeed": ("the bf16ds cases with --original", "pip install -e '.[deepspeed]'"),
    "tensorboard": ("--log_with tensorboard", "pip install -e '.[tensorboard]'"),
    "wandb": ("--log_with wandb", "pip install -e '.[wandb]'"),
    "vllm": ("serving a trained draft", "see vLLM's own installation guide"),
}


def print_environment(console: Console, pairs: Sequence[Pair], original: Path | None = None) -> None:
    """Versions and modes, optional parts, and the state of a checkout."""
    table = Table("what", "found", box=None)
    for name, value in describe().items():
        table.add_row(name, str(value))
    console.print(table)
    for line in [*optional_parts(), *checkout_state(pairs, original)]:
        console.print(line, highlight=False)


def optional_parts() -> list[str]:
    """One line for each optional package and for the GPU."""
    lines = []
    for name, (use, remedy) in OPTIONAL.items():
        lines.append(f"{name}: present" if find_spec(name) else f"{name}: missing, needed for {use}: {remedy}")
    gpu = (
        "present"
        if torch.cuda.is_available()
        else "none: tests marked gpu are skipped, everything else runs on the CPU"
    )
    return [*lines, f"GPU: {gpu}"]


def checkout_state(pairs: Sequence[Pair], original: Path | None) -> list[str]:
    """Which of the originals' files are not those of the commit."""
    if original is None:
        return ["original: no checkout given (--original DIR)"]
    wrong = [line for pair in pairs if pair.verify is not None for line in pair.verify(original)]
    return [f"original: {line}" for line in wrong] or [f"original: {original} holds the commit's files"]
