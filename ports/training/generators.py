"""The random generators that a process draws from as tensors, and back; all that a run draws is torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ports.errors import InputError

Generators = dict[str, Tensor]
"""``torch``; ``cuda`` and ``sampler`` where there is one."""


def capture(sampler: torch.Generator | None = None) -> Generators:
    """Every generator that a process draws from; ``sampler`` is the data order's own, if it has one."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if sampler is not None:
        state["sampler"] = sampler.get_state()
    return state


def restore(state: Generators, sampler: torch.Generator | None = None) -> None:
    """Put every generator back to where :func:`capture` found it."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if sampler is not None and "sampler" in state:
        sampler.set_state(state["sampler"])


def check(file: Path, state: Generators, sampler: torch.Generator | None = None) -> None:
    """Refuse (InputError) what no process can have saved: it is tried on this one's generators, which are put back."""
    own = capture(sampler)
    for name in set(own) - {"cuda"}:
        found, wanted = (f"{t.dtype} {tuple(t.shape)}" for t in (state.get(name, torch.empty(0)), own[name]))
        if found != wanted:
            raise InputError(file, "generators", f"{name}: {found}", wanted)
    try:
        restore(state, sampler)
    except (RuntimeError, TypeError) as error:
        raise InputError(file, "generators", str(error).split("\n")[0], "states that a generator can be in") from error
    finally:
        restore(own, sampler)


def sampler_generator(loader: Any) -> torch.Generator | None:
    """The generator that a prepared loader's order is drawn from, if it has one of its own.

    Several processes share one that accelerate keeps equal on all; a single process draws from torch's.
    """
    sampler = loader.get_sampler() if hasattr(loader, "get_sampler") else loader.sampler
    generator = getattr(loader, "synchronized_generator", None) or getattr(sampler, "generator", None)
    return generator if isinstance(generator, torch.Generator) else None
