"""The port's attention, fast and dense, at sizes and under masks that recordings do not have, beside the formula.

Shapes: B batch, T positions, e head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from parity.checks.evidence import Evidence
from parity.compare import compare_groups
from parity.fixtures.draws import uniform
from parity.result import Row
from parity.runs.reference.attention import ttt_attention
from ports.training.alignment import Alignment
from ports.training.attention import dense
from ports.training.attention.flash import fast_ttt_attention

SIZES = ((2, 290, 4), (2, 3, 5), (2, 1, 1))
"""Samples, positions and TTT steps: beyond a block of rows, several blocks of heads, fewer positions than steps."""

PADDING = ("whole", "right", "inside", "hole")
"""Where a sample is no token: nowhere, behind its tokens, a stretch of them, a single one."""

HEADS, KEY_HEADS, DIM = 6, 2, 8

States = list[Tensor]
"""A query, all keys and all values."""

Attend = Callable[[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]


def check_attention(evidence: Evidence) -> list[Row]:
    """Rows of the sizes check: output and every gradient, in float32 beside the formula in float64."""
    rows: list[Row] = []
    for alignment, (samples, length, steps), padding in product(Alignment, SIZES, PADDING):
        states, mask = _states(samples, length, steps), _mask(samples, length, padding)
        name = f"{alignment.value} {samples}x{length} {padding}"
        ways = _ways(None if padding == "whole" else mask, mask, alignment)
        expected = _results(name, ways.pop("definition"), [each.double() for each in states], mask)
        for way, attend in ways.items():
            found = _results(name, attend, [each.clone() for each in states], mask)
            subject, tolerance = evidence.subject("sizes"), evidence.tolerance("attention")
            rows += compare_groups(subject, f"{way} attention", expected, found, tolerance)
    return rows


def _ways(seen: Tensor | None, mask: Tensor, alignment: Alignment) -> dict[str, Attend]:
    """The same attention by name; ``seen`` is the mask where there is something to mask."""
    own = alignment is Alignment.PROTOTYPE
    return {
        "definition": lambda query, keys, values: ttt_attention(query, keys, values, mask, own),
        "fast": lambda query, keys, values: fast_ttt_attention(query, keys, values, seen, DIM**-0.5, alignment),
        "dense": lambda query, keys, values: dense.ttt_attention(query, keys, values, mask, DIM**-0.5, alignment),
    }


def _states(samples: int, length: int, steps: int) -> States:
    keys = [drawn(f"{kind}{i} {length}", samples, KEY_HEADS, length, DIM) for kind in "kv" for i in range(steps)]
    return [drawn(f"query {length}", samples, HEADS, length, DIM), *keys]


def _results(name: str, attend: Attend, states: States, mask: Tensor) -> dict[str, Tensor]:
    """Output and gradients of the real rows."""
    steps = len(states) // 2
    query, *others = (each.requires_grad_(True) for each in states)
    out = attend(query, tuple(others[:steps]), tuple(others[steps:]))
    real = torch.where(mask.bool()[:, None, :, None], out, 0)
    seed = drawn(f"grad {mask.shape[1]}", *out.shape).to(out.dtype)
    seed[:, :, : mask.shape[1] // 2] *= int(bool(mask.all()))  # beside padding the first half is a prompt, in no loss
    grads = torch.autograd.grad(real, [query, *others], seed, materialize_grads=True)
    names = ["query", *(f"{kind}{i}" for kind in ("key", "value") for i in range(steps))]
    return {f"{name} {each}": value for each, value in {"out": real.detach(), **dict(zip(names, grads))}.items()}


def _mask(samples: int, length: int, padding: str) -> Tensor:
    """[B, T], a tenth of every sample but the first is no token; or the last sample lacks one token."""
    mask = torch.ones(samples, length, dtype=torch.int64)
    if padding == "hole":
        mask[-1, length // 2] = int(length < 3)
    elif padding != "whole":
        stop = length if padding == "right" else length // 2
        mask[1:, stop - length // 10 : stop] = 0
    return mask


def drawn(name: str, *shape: int) -> Tensor:
    """float32, mean 0 and variance 1, the same on every machine."""
    return torch.from_numpy(uniform(0, name, shape)).float() * 3**0.5
