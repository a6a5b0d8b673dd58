"""What is allowed is measured: how far one rounding of inputs and weights moves what the original computes.

The original is run again with each floating-point input and weight moved by a random unit in the last place of the
precision that it computes in, after TTrace (arXiv 2506.09280). A port's relative error may be ``TIMES`` as large as the
root mean square of what that does, or ``MARGIN`` as large as the most that any draw did, whichever is more: tails are
heavy where a step turns on a sign. All sizes are over what the views count, relative to the original's.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from parity.calls import with_tensors
from parity.trace import Point, Trace

Value = TypeVar("Value")


class Size(NamedTuple):
    """What draws did to a quantity, relative to it: root mean square, and the most of any.

    ``doubled`` is what twice the rate does, 0 where nobody measured it.
    """

    rms: float
    most: float = 0.0
    doubled: float = 0.0

    @property
    def bound(self) -> float:
        """How far a port may be off."""
        return max(TIMES * self.rms, MARGIN * self.most)

    @property
    def says(self) -> bool:
        """False where rounding reaches so much of what twice the rate does that a row says nothing any more."""
        return not self.doubled or self.bound < SHARE * self.doubled


Spread = Mapping[str, Sequence["tuple[float, float, float] | float"]]
"""By what :func:`pool_of` says one size; by ``curve.<series>`` one for every point that has a value.

By ``DRAWN`` how often the original was moved and turned. A lone number is a root mean square, as older files have it.
"""

Sizes = Mapping[str, Sequence[tuple[float, float]]]
"""Of one draw, by the same names: mean square and the largest."""

DRAWN = "(drawn)"

TIMES = 4.0
"""How far a port may be off, of what one rounding does: independent implementations were seen at 1.7 and less."""

MARGIN = 2.0
"""How far a port may be off, of the most that a draw did; measured by ``benchmarks/false_alarms.py``."""

SHARE = 0.5
"""Of what twice the rate does to a curve: where rounding reaches it, the curve no longer says anything."""

NEAR = 16.0
"""So many roundings from zero, an entry of a gradient may have either sign: Adam's step is of the rate's size there."""

MANY = 16
"""More entries of one gradient than this so near zero turn by themselves in some draws; then ``TIMES`` is near."""

FEW = 4.0
"""Units of a quantity's own dtype that are always allowed: draws of a single number may agree by chance."""

SAYS_NOTHING = 0.5
"""A bound of so much of the quantity says nothing."""

NEIGHBOURS = 2
"""Points before and after one that its spread is pooled with: a single loss may stay where it is by chance."""

LARGEST = 1e3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16ds": torch.bfloat16}
MICRO_BATCH = re.compile(r"mb\d+\.")
NOT_MEASURED = ("batch.", "draw.")


class Disturbance(Protocol):
    """What is done to every step of an optimizer."""

    def attach(self, module: nn.Module, optimizer: Optimizer) -> None:
        """Have it done from now on."""


def unit_of(values: Tensor, eps: float) -> Tensor:
    """One unit in the last place of each entry, float64, for a precision of this ``eps``; 0 where the entry is 0."""
    wide = values.detach().double()
    exponents = torch.frexp(wide)[1] - 1
    units = torch.ldexp(torch.full_like(wide, eps), exponents)
    return units.where(wide != 0, torch.zeros_like(wide))


def moved(value: Value, draw: int, dtype: torch.dtype = torch.float32, part: int = 0) -> Value:
    """The same structure with every floating-point entry one unit of ``dtype`` up or down, at random.

    Args:
        value: tensors, in dicts, lists and tuples. Those that are narrower than ``dtype`` enter exactly, and stay; so
            do those of whole numbers, masks for example.
        draw: its number, which seeds the choice with ``part``; 0 moves nothing.
        part: so that several values of a draw move independently.
    """
    generator = torch.Generator().manual_seed(1000 * draw + part)

    def move(tensor: Tensor) -> Tensor:
        whole = not tensor.is_floating_point() or bool((tensor == tensor.round()).all())
        return tensor if whole else moved_by_one(tensor, dtype, generator)

    return with_tensors(value, move) if draw else value


def moved_by_one(tensor: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Every entry one unit of ``dtype`` up or down, 0 and what is infinite aside; a narrower tensor as it is."""
    eps = torch.finfo(dtype).eps
    if torch.finfo(tensor.dtype).eps > eps:
        return tensor
    signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
    found = tensor.detach().double().cpu()
    limits = torch.finfo(tensor.dtype)
    found = torch.where(found.isfinite(), (found + signs * unit_of(found, eps)).clamp(limits.min, limits.max), found)
    return found.to(tensor)


@torch.no_grad()
def move_module(module: nn.Module, draw: int, dtype: torch.dtype) -> None:
    """Parameters and saved buffers, in place; what is tied stays tied."""
    saved, generator = module.state_dict(), torch.Generator().manual_seed(1000 * draw)
    held = [*module.parameters(), *(value for name, value in module.named_buffers() if name in saved)]
    for value in (value for value in held if value.is_floating_point()):
        value.copy_(moved_by_one(value.detach(), dtype, generator))


@contextmanager
def autocast_seen(module: nn.Module) -> Iterator[set[torch.dtype]]:
    """Collects the dtypes of autocast that the module's parts run under: there these are computed in, not their own."""
    seen = set[torch.dtype]()

    def look(part: nn.Module, args: Any) -> None:
        for device in {value.device.type for value in part.parameters()}:
            if torch.is_autocast_enabled(device):
                seen.add(torch.get_autocast_dtype(device))

    handles = [part.register_forward_pre_hook(look) for part in module.modules()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def computed_in(module: nn.Module, seen: Collection[torch.dtype]) -> str:
    """The dtype of the module's matrices, or of autocast where it runs under one; the narrowest, in torch's words."""
    held = [value for value in module.parameters() if value.is_floating_point()]
    dtypes = {value.dtype for value in held if value.dim() > 1} or {value.dtype for value in held} or {torch.float32}
    return str(max({*dtypes, *seen}, key=lambda dtype: torch.finfo(dtype).eps)).removeprefix("torch.")


def precision_of(trace: Trace) -> torch.dtype:
    """What a trace's run computed in; float32 where it says nothing that torch knows."""
    found = DTYPES.get(trace.dtype) or getattr(torch, trace.precision or trace.dtype, None)
    return found if isinstance(found, torch.dtype) else torch.float32


def pool_of(name: str) -> str:
    """What a tensor's spread is pooled under; empty: it is not measured.

    Micro-batches are pooled, and single numbers of one kind, whose draws agree by chance.
    """
    if name.startswith("last."):
        return name
    match = MICRO_BATCH.match(name)
    rest = name[match.end() :] if match else ""
    if rest.startswith(NOT_MEASURED):
        return ""
    return "loss" if rest.rpartition(".")[2] == "loss" else "path" if rest.startswith("path.") else rest


def relative(expected: Tensor, found: Tensor) -> float:
    """|found - expected| over |expected|; of whole numbers whether any differs. Infinite where nothing can be said.

    What is infinite on both sides alike does not differ.
    """
    if expected.shape != found.shape:
        return math.inf
    if not expected.is_floating_point():
        return float(not torch.equal(expected, found))
    mine, theirs = expected.detach().double(), found.detach().double()
    mine, theirs = without_endless(mine, theirs)
    gap, size = float((theirs - mine).norm()), float(mine.norm())
    return 0.0 if gap == 0 else gap / size if size and math.isfinite(gap / size) else math.inf


def without_endless(expected: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Both with 0 where they are infinite alike."""
    endless = torch.isinf(expected) & (expected == found)
    return expected.masked_fill(endless, 0), found.masked_fill(endless, 0)


def relative_each(expected: Tensor, found: Tensor) -> Tensor:
    """Entry by entry; equal ones do not differ, even where they are 0."""
    gap = (found.double() - expected.double()).abs()
    sizes = torch.where(gap == 0, gap, gap / expected.double().abs())
    return sizes.nan_to_num(nan=math.inf, posinf=math.inf)


def spread_of(base: Trace, draws: Sequence[Trace]) -> dict[str, list[Size]]:
    """What moving the original's inputs and weights did, by quantity.

    Args:
        base: of the original as it is.
        draws: of the same, moved; in the same coordinates.
    """
    gradients = pooled([tensor_sizes(base, draw) for draw in draws])
    return pooled([sizes_of(base, draw, gradients) for draw in draws])


def sizes_of(base: Trace, draw: Trace, gradients: Spread) -> Sizes:
    """What one draw did, by quantity; ``gradients`` is what draws do to these, which says which entries are clear."""
    return {**tensor_sizes(base, draw), **state_sizes(base, draw, gradients), **series_sizes(base, draw)}


def tensor_sizes(base: Trace, draw: Trace) -> Sizes:
    """Of everything that is no state and no series."""
    pools: dict[str, list[float]] = defaultdict(list)
    for name in (name for name in base.tensors if pool_of(name) and name in draw.tensors):
        pools[pool_of(name)].append(min(relative(base.tensors[name], draw.tensors[name]), LARGEST))
    return {name: [(sum(one**2 for one in sizes) / len(sizes), max(sizes))] for name, sizes in pools.items()}


def state_sizes(base: Trace, draw: Trace, gradients: Spread) -> Sizes:
    """Of what the first step made of every parameter, and all steps together."""
    found = {}
    for group in ("after", "final"):
        for name in base.group(f"{group}."):
            mine, theirs = (update_of(trace, group, name) for trace in (base, draw))
            if mine is not None and theirs is not None:
                kept = clear(gradient_of(base, name), mine, gradients, name)
                size = min(relative(mine[kept], theirs[kept]), LARGEST)
                found[f"{group}.{name}"] = [(size**2, size)]
    return found


def series_sizes(base: Trace, draw: Trace) -> Sizes:
    """Of every series, point by point, with its neighbours."""
    sides, found = [[numbers_of(point) for point in trace.curve] for trace in (base, draw)], {}
    for name in dict.fromkeys(name for point in sides[0] for name in point):
        mine, theirs = (
            torch.tensor([point[name] for point in side if name in point], dtype=torch.float64) for side in sides
        )
        if len(mine) == len(theirs):
            sizes = around(relative_each(mine, theirs).clamp(max=LARGEST)).tolist()
            found[f"curve.{name}"] = [(size**2, size) for size in sizes]
    return found


def pooled(moved: Sequence[Sizes], turned: Sequence[Sizes] = (), doubled: Sizes | None = None) -> dict[str, list[Size]]:
    """Draws together; the spread of a series never shrinks again.

    Args:
        moved: of draws that move inputs and weights.
        turned: of draws that turn signs of gradients, which show in what follows the first step.
        doubled: of a run at twice the rate.
    """
    spread, names = {}, set(moved[0] if moved else ()).intersection(*moved[1:])
    for name in sorted(names):
        later = name.startswith(("curve.", "final."))
        most = torch.tensor([[each for _, each in sizes[name]] for sizes in (*moved, *(turned if later else ()))])
        mean = torch.tensor([[each for each, _ in sizes[name]] for sizes in moved], dtype=torch.float64).mean(0)
        other = [each for _, each in (doubled or {}).get(name, ())] if later else []
        columns = mean.sqrt().cummax(0).values.tolist(), most.max(0).values.cummax(0).values.tolist()
        spread[name] = [Size(*map(short, size)) for size in zip_longest(*columns, other[: mean.numel()], fillvalue=0.0)]
    for name in ("loss", "grad_norm"):
        if name in spread and f"curve.{name}" in spread:
            spread[name] = [Size(max(spread[name][0].rms, spread[f"curve.{name}"][0].rms), spread[name][0].most)]
    return {**spread, DRAWN: [Size(len(moved), len(turned))]} if spread else {}


def short(size: float) -> float:
    """With three digits, which a file can hold."""
    return float(f"{size:.3g}")


def size_of(entry: tuple[float, float, float] | float) -> Size:
    """An entry of a spread."""
    return Size(entry) if isinstance(entry, (int, float)) else Size(*entry)


def update_of(trace: Trace, group: str, name: str) -> Tensor | None:
    """``after`` or ``final`` minus ``init``, float64; None where a trace has not both."""
    end, begin = (trace.tensors.get(f"{one}.{name}") for one in (group, "init"))
    if end is None or begin is None or end.shape != begin.shape or not end.is_floating_point():
        return None
    return end.double() - begin.double()


def clear(gradient: Tensor | None, update: Tensor, spread: Spread, parameter: str) -> Tensor:
    """bool, as the update: entries whose gradient is further from zero than rounding moves it.

    Adam's first step is lr * sign(g): the others may go either way, and are set aside. All are clear where no gradient
    is known, and where all of it is 0.
    """
    if gradient is None or one_rounding(gradient, update, spread, parameter) is None:
        return torch.ones(update.shape, dtype=torch.bool)
    return ~near_zero(gradient, size_of(spread[f"grad.{parameter}"][0]).rms)


def near_zero(gradient: Tensor, rounding: float) -> Tensor:
    """bool, as the gradient: entries that may have either sign, where one rounding moves it by so much of its size."""
    sizes = gradient.double().abs()
    unit = rounding * float(sizes.square().mean().sqrt())
    near = sizes <= NEAR * unit
    return near if int((near & (sizes > 0)).sum()) <= MANY else sizes <= TIMES * unit


def one_rounding(gradient: Tensor | None, update: Tensor, spread: Spread, parameter: str) -> float | None:
    """How far it moves an entry of a gradient; None where none of the update's shape is known, or all of it is 0."""
    if gradient is None or gradient.shape != update.shape or f"grad.{parameter}" not in spread or not gradient.any():
        return None
    return size_of(spread[f"grad.{parameter}"][0]).rms * float(gradient.double().square().mean().sqrt())


def carried(gradient: Tensor | None, update: Tensor, kept: Tensor, spread: Spread, parameter: str) -> float:
    """What rounding of the gradient does to the first update, to first order and relative to it, on the entries kept.

    Of Adam's u = r * g / (|g| + eps), du / dg = (r - |u|) * |u| / (r * |g|), where r, the rate, is the largest |u|; of
    a step along the gradient it is less than u / g. Where |g| is about eps a few entries have nearly all of it, which
    draws meet or miss by chance. 0 where no gradient is known.
    """
    size, moved = update[kept].abs(), one_rounding(gradient, update, spread, parameter)
    if gradient is None or moved is None or not size.any():
        return 0.0
    slope = (1 - size / size.max()) * size / gradient.double().abs()[kept]
    return TIMES * moved * float(slope.nan_to_num().norm() / size.norm())


def gradient_of(trace: Trace, parameter: str) -> Tensor | None:
    """The one that the first optimizer step was made with."""
    return trace.tensors.get(f"mb{(trace.micro_batches() or [0])[-1]}.grad.{parameter}")


def hidden(weight: Tensor, update: Tensor, kept: Tensor, dtype: torch.dtype, steps: int) -> float:
    """What a weight's own last place hides of its update: |units| * sqrt(steps) over |update|, on the entries kept.

    Where the two sides store the weight in other dtypes, ``dtype`` being the found side's, the wider one is rounded
    once, to the narrower.
    """
    eps = max(torch.finfo(each).eps for each in (weight.dtype, dtype))
    size = float(update[kept].norm())
    gap = float(unit_of(weight, eps)[kept].norm()) * math.sqrt(max(1, steps if weight.dtype == dtype else 1))
    return gap / size if size else math.inf


def around(sizes: Tensor) -> Tensor:
    """[..., points]: the root mean square of each point and its ``NEIGHBOURS`` on either side."""
    windows = [sizes[..., max(0, n - NEIGHBOURS) : n + NEIGHBOURS + 1] for n in range(sizes.shape[-1])]
    return torch.stack([window.square().mean(-1).sqrt() for window in windows], dim=-1)


def numbers_of(point: Point, unrolled: bool = True) -> dict[str, float]:
    """What a point says that rounding moves: loss, gradient norm, what is logged, the losses of an unrolled model."""
    steps = {f"loss of step {n}": loss for n, loss in enumerate(point.step_losses) if unrolled}
    own = {"loss": point.loss, "grad_norm": point.grad_norm}
    return {name: value for name, value in {**own, **point.logged, **steps}.items() if value is not None}
