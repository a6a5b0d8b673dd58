"""The random generators of a process as tensors, and back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ports.errors import InputError

Generators = dict[str, Tensor]
"""``torch``, ``python``, ``python_gauss``, ``numpy``, ``numpy_gauss``; ``cuda`` and ``sampler`` where there is one."""

NONE = float("nan")
"""Stands for "no second Gaussian is waiting"."""


def capture(sampler: torch.Generator | None = None) -> Generators:
    """Every generator that a process draws from; ``sampler`` is the data order's own, if it has one."""
    _, words, python_gauss = random.getstate()
    _, keys, position, has_gauss, numpy_gauss = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([NONE if python_gauss is None else python_gauss], dtype=torch.float64),
        "numpy": torch.tensor([*map(int, keys), int(position), int(has_gauss)], dtype=torch.int64),
        "numpy_gauss": torch.tensor([numpy_gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if sampler is not None:
        state["sampler"] = sampler.get_state()
    return state


def restore(state: Generators, sampler: torch.Generator | None = None) -> None:
    """Put every generator back to where :func:`capture` found it."""
    torch.set_rng_state(state["torch"])
    gauss = float(state["python_gauss"])
    random.setstate((3, tuple(state["python"].tolist()), None if gauss != gauss else gauss))
    *keys, position, has_gauss = state["numpy"].tolist()
    words = np.asarray(keys, dtype=np.uint32)
    np.random.set_state(("MT19937", words, position, has_gauss, float(state["numpy_gauss"])))
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
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
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
