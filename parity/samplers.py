"""What two sides draw at random, over many seeds: kept in a trace, and compared as two samples."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parity.calls import tensors_of
from parity.compare import RowKey
from parity.observe import Draw, Observation
from parity.trace import Trace
from parity.verdict import Row

SAMPLES = "sample."


SIGNIFICANT = 4.5
"""Standard errors: two equal samplers with a thousand candidates exceed it once in 150 comparisons."""


CHANCE = 1 / 150
"""That two equal samplers fail a row, at most."""


LEVELS = 100
"""Up to which a distribution of floats is looked at."""


RESOLUTION = 1e-6
"""Of the largest float drawn: what is closer may differ by rounding alone."""


def sampled(draw: Draw, sample: Callable[[], Any], seeds: Iterable[int]) -> list[Tensor]:
    """The entries that ``sample`` draws, under one seed after the other; what it draws else is of no account."""
    found = []
    with torch.no_grad(), torch.random.fork_rng():
        for seed in seeds:
            for seeded in (random.seed, np.random.seed, torch.manual_seed):
                seeded(seed)
            values = draw.values or _entries
            tensors = [*tensors_of(sample()).values()] or [torch.zeros(0)]
            found.append(values(*tensors[: _wanted(values)]).flatten().cpu())
    return found


def _wanted(values: Callable[..., Tensor]) -> int:
    """How many tensors a function is to be given."""
    try:
        found = inspect.signature(values).parameters.values()
    except ValueError:  # one of torch's own
        return 1
    return sum(one.default is one.empty for one in found)


def keep_samples(trace: Trace, seen: Observation) -> None:
    """Call again what drew, as it was first called, and put its entries into a trace, of all seeds in a row."""
    for draw, sample in seen.samplers.items():
        if draw.seeds:
            found = sampled(draw, sample, range(draw.seeds))
            trace.tensors[f"{SAMPLES}{draw.name}.entries"] = torch.cat(found)
            trace.tensors[f"{SAMPLES}{draw.name}.sizes"] = torch.tensor([len(one) for one in found])


def samples_of(trace: Trace) -> dict[str, list[Tensor]]:
    """By the name of a draw, what came under every seed."""
    held = trace.group(SAMPLES)
    names = [name.removesuffix(".sizes") for name in held if name.endswith(".sizes")]
    return {name: list(held[f"{name}.entries"].split(held[f"{name}.sizes"].tolist())) for name in names}


def _entries(drawn: Tensor) -> Tensor:
    return drawn.nonzero()[:, -1] if drawn.dtype == torch.bool else drawn


def compare_samplers(subject: RowKey, name: str, expected: Sequence[Tensor], found: Sequence[Tensor]) -> list[Row]:
    """Two samplers as such: how many entries a draw has, which ever come, how often, and what stands at each place.

    Numbers are compared in standard errors over the draws, so that entries of one draw may depend on each other; what
    only one side draws counts when that is more than chance. Whole numbers are counted without their repeats too,
    floats have a distribution, and places are compared where all draws have as many.
    """
    sides = expected, found
    if not expected or not found:
        return [subject.failed("draws", name, f"drawn {len(found)} times, expected {len(expected)}", 0.0)]
    floats = any(draw.is_floating_point() for draw in (*expected, *found))
    counts = [[[len(draw), *[len(draw.unique())] * (not floats)] for draw in side] for side in sides]
    rows = [_alike(subject, "number drawn", name, *map(torch.tensor, counts), labels=("", " different ones"))]
    if floats:
        rows += _compare_floats(subject, name, *([draw.double() for draw in side if len(draw)] for side in sides))
    else:
        rows += _compare_entries(subject, name, expected, found)
    lengths = {len(draw) for draw in (*expected, *found)}
    if len(lengths) == 1 and max(lengths) > 1:
        places = [f" at place {place}" for place in range(max(lengths))]
        rows.append(_alike(subject, "order", name, *(torch.stack([*side]) for side in sides), labels=places))
    return rows


def _compare_entries(subject: RowKey, name: str, *sides: Sequence[Tensor]) -> list[Row]:
    """Whole numbers: those that both sides ever draw, and the share of draws with each."""
    entries = torch.cat([draw for side in sides for draw in side]).unique()
    drawn = [torch.stack([torch.isin(entries, draw) for draw in side]).double() for side in sides]
    often, errors = [side.mean(0) for side in drawn], _errors(*drawn)
    unknown = often[0] * often[1] == 0
    sure = int((unknown & (errors > SIGNIFICANT)).sum())
    only = zip(("original", "port"), (entries[(one > 0) & unknown].tolist() for one in often))
    words = [f"only {side}: {', '.join(map(str, own))}" for side, own in only if own]
    detail = "; ".join([" / ".join(str(int((side > 0).sum())) for side in often) + " candidates", *words])
    rows = [subject.row("candidates", name, float(sure), 0.0, not sure, detail)]
    if bool(unknown.all()):
        return rows
    worst = int(errors.masked_fill(unknown, -1.0).argmax())
    measured = float(errors[worst])
    detail = f"{entries[worst]} in {often[0][worst]:.3f} / {often[1][worst]:.3f} of the draws"
    return [*rows, subject.row("frequency", name, measured, SIGNIFICANT, measured <= SIGNIFICANT, detail)]


def _errors(*sides: Tensor) -> Tensor:
    """The differences of two samples' means in their standard errors, column by column."""
    gap = (sides[0].mean(0) - sides[1].mean(0)).abs()
    error = sum((side.var(0, correction=0) / len(side) for side in sides), torch.zeros_like(gap)).sqrt()
    return torch.where(gap == 0, gap, gap / error)


def _compare_floats(subject: RowKey, name: str, *sides: Sequence[Tensor]) -> list[Row]:
    """Mean and deviation of entries, deviation of draws, and the shares of entries up to each of some levels.

    The last is Kolmogorov and Smirnov's distance, in errors that hold for entries which depend on each other as well.
    """
    if not all(sides):
        return [subject.failed("mean", name, "no number is drawn", SIGNIFICANT)]
    whole = [torch.cat([*side]) for side in sides]
    means = [torch.stack([draw.mean() for draw in side]) for side in sides]
    parts = [(every - every.mean()).split([len(draw) for draw in side]) for every, side in zip(whole, sides)]
    squares = [torch.stack([torch.stack([part.square().mean(), part.mean() ** 2]) for part in side]) for side in parts]
    ordered = torch.cat(whole).sort().values
    chosen = torch.linspace(0, len(ordered) - 1, LEVELS, dtype=torch.float64).long()
    levels = ordered[chosen] + RESOLUTION * ordered.abs().max()
    shares = [torch.stack([_shares(draw, levels) for draw in side]) for side in sides]
    rows = [_alike(subject, "mean", name, *means)]
    if min(map(len, whole)) > 1:
        rows.append(_alike(subject, "std", name, *squares, labels=("", " of the draws' means"), scale=math.sqrt))
    upto = [f" of them up to {level:.6g}" for level in levels.tolist()]
    return [*rows, _alike(subject, "distribution", name, *shares, labels=upto)]


def _shares(draw: Tensor, levels: Tensor) -> Tensor:
    """Of the entries, up to each level."""
    return torch.searchsorted(draw.sort().values, levels, right=True) / len(draw)


def _alike(
    subject: RowKey,
    quantity: str,
    name: str,
    *sides: Tensor,
    labels: Sequence[str] = ("",),
    scale: Callable[[float], float] = float,
) -> Row:
    """Two samples [draws, columns] by the means that differ most; ``labels`` say which column that is.

    The more columns, the more standard errors are allowed: equal samplers exceed them once in 150 comparisons at most.
    """
    columns = [side.double().reshape(len(side), -1) for side in sides]
    errors = _errors(*columns)
    worst = int(errors.nan_to_num(nan=torch.inf).argmax())
    measured = float(errors[worst])
    allowed = max(SIGNIFICANT, -NormalDist().inv_cdf(CHANCE / (2 * len(errors))))
    detail = " / ".join(f"{scale(float(side[:, worst].mean())):.6g}" for side in columns) + labels[worst]
    return subject.row(quantity, name, measured, allowed, measured <= allowed, detail)
