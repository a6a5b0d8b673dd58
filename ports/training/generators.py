"""The random generators that a run draws from: where they are, and how they come back to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ports.errors import InputError, reason

Generators = dict[str, Tensor]
"""States of the random generators of a process: ``torch``; ``cuda`` and ``sampler`` where there is one."""


@dataclass
class Replay:
    """How to come back into a pass: the generators at its start, and where they must be after the batches since."""

    start: Generators
    now: Generators
    file: Path


def generators_of(loader: Any) -> Generators:
    """Every random generator that this process draws from with the prepared ``loader``, as it is now."""
    state, sampler = {"torch": torch.get_rng_state()}, _sampler_generator(loader)
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if sampler is not None:
        state["sampler"] = sampler.get_state()
    return state


def put_back(loader: Any, state: Generators, file: Path) -> None:
    """Put every generator back to where :func:`generators_of` found it.

    Raises:
        InputError: ``state``, which came from ``file``, is none that these generators can be in.
    """
    sampler = _sampler_generator(loader)
    try:
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        if sampler is not None:
            sampler.set_state(state["sampler"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise InputError(file, "generators", reason(error), "a state of every generator of the run") from error


def _sampler_generator(loader: Any) -> torch.Generator | None:
    """The generator that the order is drawn from, if it has one of its own.

    Several processes share one that accelerate keeps equal on all; a single process draws from torch's.
    """
    sampler = loader.get_sampler() if hasattr(loader, "get_sampler") else loader.sampler
    generator = getattr(loader, "synchronized_generator", None) or getattr(sampler, "generator", None)
    return generator if isinstance(generator, torch.Generator) else None
