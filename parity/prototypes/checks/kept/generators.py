"""Random generators as a checkpoint keeps them, and whose a loader draws from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from parity.compare import Subject, compare_value
from parity.environment import deterministic
from parity.verdict import Row
from ports.training.checkpoint import generators


def check_generators(subject: Subject) -> Iterator[Row]:
    """Rows of the upkeep check."""
    yield from _drawn_again(subject)
    yield from _of_loaders(subject)


def _drawn_again(subject: Subject) -> Iterator[Row]:
    """Every generator draws again what it drew, also where a second Gaussian was waiting."""
    own = torch.Generator()
    for waiting in (True, False):
        with deterministic(3):
            if waiting:
                random.gauss(0, 1)
                np.random.randn()
            state = generators.capture(own)
            first = _draws(own)
            generators.restore(state, own)
            yield compare_value(subject, "generators", f"Gaussian waiting: {waiting}", first, _draws(own))


def _of_loaders(subject: Subject) -> Iterator[Row]:
    """Several processes share one that accelerate keeps equal; else it is the sampler's, if that has one."""
    first, second = torch.Generator(), torch.Generator()
    own, other, none = (SimpleNamespace(generator=each) for each in (first, second, None))
    loaders: dict[str, tuple[Any, Any]] = {
        "of the sampler": (first, SimpleNamespace(sampler=own)),
        "of the sampler inside": (first, SimpleNamespace(sampler=other, get_sampler=lambda: own)),
        "shared": (second, SimpleNamespace(sampler=own, synchronized_generator=second)),
        "none": (None, SimpleNamespace(sampler=none)),
        "no generator": (None, SimpleNamespace(sampler=SimpleNamespace(generator=5))),
    }
    for name, (expected, loader) in loaders.items():
        yield compare_value(subject, "generators", name, id(expected), id(generators.sampler_generator(loader)))
    state = generators.capture()
    generators.restore(state, first)
    yield compare_value(subject, "generators", "without the sampler's", False, "sampler" in state)


def _draws(own: torch.Generator) -> list[float]:
    drawn = [torch.rand(()).item(), torch.rand((), generator=own).item(), random.random(), float(np.random.rand())]
    return [*drawn, random.gauss(0, 1), float(np.random.randn())]
