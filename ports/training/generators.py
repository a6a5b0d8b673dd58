"""The random generators of a process as tensors, and back: torch's, and the one that the order is drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ports.errors import InputError, reason

Generators = dict[str, Tensor]
"""States: ``torch``; ``cuda`` and ``sampler`` where there is one."""


def capture(sampler: torch.Generator | None = None) -> Generators:
    """Every generator that a process draws from; ``sampler`` is the data order's own, if it has one."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if sampler is not None:
        state["sampler"] = sampler.get_state()
    return state


def restore(state: Generators, sampler: torch.Generator | None = None, file: Path = Path("generators")) -> None:
    """Put every generator back to where :func:`capture` found it.

    Raises:
        InputError: ``state``, which came from ``file``, is none that these generators can be in.
    """
    try:
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        if sampler is not None:
            sampler.set_state(state["sampler"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise InputError(file, "generators", reason(error), "a state of every generator of the run") from error


def sampler_generator(loader: Any) -> torch.Generator | None:
    """The generator that a prepared loader's order is drawn from, if it has one of its own.

    Several processes share one that accelerate keeps equal on all; a single process draws from torch's.
    """
    sampler = loader.get_sampler() if hasattr(loader, "get_sampler") else loader.sampler
    generator = getattr(loader, "synchronized_generator", None) or getattr(sampler, "generator", None)
    return generator if isinstance(generator, torch.Generator) else None
