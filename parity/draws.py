"""The original run again: moved by one rounding, with signs turned that rounding may turn, at twice its rate.

Few draws are made of every case. Where a row is beyond the bound that they give, more are made before it is called
wrong: ``MOVED`` in all, and ``TURNED`` in which every entry of a gradient that is near zero has a sign at random. Adam
moves a weight by its rate whatever the gradient's size, so such a sign moves what follows by far more than rounding
does, in one run of a hundred; turned on purpose it is met in every second one. A last run steps at twice the rate:
where rounding reaches half of what that does, a curve no longer says anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from parity.allowed import (
    MANY,
    Disturbance,
    Sizes,
    Spread,
    near_zero,
    pooled,
    precision_of,
    size_of,
    sizes_of,
    spread_of,
    tensor_sizes,
)
from parity.trace import Trace

DRAWS = 3
"""How often a live original is moved in any case."""

MOVED, TURNED = 64, 32
"""How often at most, before a row is called wrong; and how often a recording's is, once and for all."""

FIRST = 8
"""After so many of both a row is looked at again: one that is far beyond what they did needs no more."""

SECONDS = 120.0
"""What further draws of one case may take."""


@dataclass
class Turn:
    """Entries of gradients near zero get a sign at random before every step, unless they are so many that draws do.

    Args:
        sizes: what one rounding does to the gradient of each parameter, relative to it.
        seed: of the signs.
    """

    sizes: Mapping[str, float]
    seed: int
    generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def turned(self, name: str, gradient: Tensor) -> Tensor:
        """The gradient of a parameter, any shape and dtype, with its signs near zero at random."""
        near = near_zero(gradient, self.sizes.get(name, 0.0))
        if not 0 < int(near.sum()) <= MANY:
            return gradient
        signs = torch.randint(0, 2, gradient.shape, generator=self.generator) * 2 - 1
        return torch.where(near, gradient * signs.to(gradient), gradient)

    def attach(self, module: nn.Module, optimizer: Optimizer) -> None:
        """Of what lies in shards, which no process has whole, the signs stay."""
        held = {name: value for name, value in module.named_parameters() if not hasattr(value, "full_tensor")}

        def before(*_: Any) -> None:
            for name, value in held.items():
                if value.grad is not None:
                    value.grad.copy_(self.turned(name, value.grad))

        optimizer.register_step_pre_hook(before)


class Doubled:
    """Every step is made at twice the rate: the planted fault that a curve must be able to show."""

    def attach(self, module: nn.Module, optimizer: Optimizer) -> None:
        """The optimizer's own rates are as they were after every step, for whoever schedules them."""
        rates: list[Any] = []

        def before(*_: Any) -> None:
            rates[:] = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = 2 * group["lr"]

        def after(*_: Any) -> None:
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)


Run = Callable[..., "Trace | None"]
"""``run(number)`` is the original moved by that draw, ``run(0, disturbance)`` disturbed; None where it cannot be."""


def runs_of(side: Any, case: Any, base: Trace) -> Run:
    """How a side that gave ``base`` is run again on a case."""
    draw, precision = getattr(side, "draw", None), precision_of(base)

    def run(number: int, disturbance: Disturbance | None = None) -> Trace | None:
        found: Trace | None = draw(case, number, precision, disturbance) if draw else None
        return found

    return run


def draws_of(run: Run) -> list[Trace]:
    """The original moved ``DRAWS`` times; none where it cannot be run again."""
    return [trace for number in range(1, DRAWS + 1) if (trace := run(number)) is not None]


def gradient_sizes(base: Trace, few: Sequence[Trace]) -> dict[str, float]:
    """What one rounding does to every gradient, relative to it, by the run's own names."""
    spread = pooled([tensor_sizes(base, draw) for draw in few])
    return {name[5:]: size_of(sizes[0]).rms for name, sizes in spread.items() if name.startswith("grad.")}


def stages_of(
    run: Run, base: Trace, few: Sequence[Trace], aligned: Callable[[Trace], Trace], seconds: float = SECONDS
) -> Iterator[Spread]:
    """What rounding does to the original, from more and more draws, as many as the time allows.

    Args:
        run: of the original.
        base: its trace, by its own names; ``few`` of the same, moved.
        aligned: brings a trace of it into the coordinates that are compared.
        seconds: what all stages may take.
    """
    turn, until, shared = gradient_sizes(base, few), time.monotonic() + seconds, aligned(base)
    gradients = spread_of(shared, [aligned(trace) for trace in few])

    def sizes(number: int, disturbance: Disturbance | None = None) -> list[Sizes]:
        trace = run(number, disturbance)
        return [sizes_of(shared, aligned(trace), gradients)] if trace is not None else []

    doubled, moved, turned = sizes(0, Doubled()), [sizes_of(shared, aligned(trace), gradients) for trace in few], []
    for number in range(1, MOVED + 1):
        moved += sizes(number) if number > len(few) else []
        turned += sizes(0, Turn(turn, number)) if number <= TURNED else []
        late = time.monotonic() > until
        if number in (FIRST, MOVED) or late:
            yield pooled(moved, turned, *doubled)
        if late:
            return


class Stages:
    """Spreads that are made when they are asked for, once: of ``FIRST`` draws, of all."""

    def __init__(self, spreads: Iterable[Spread]) -> None:
        self._left, self._made = iter(spreads), list[Spread]()

    def __call__(self, stage: int) -> Spread | None:
        """That of stage 0, 1, ...; None where there are no more."""
        while len(self._made) <= stage and (found := next(self._left, None)) is not None:
            self._made.append(found)
        return self._made[stage] if stage < len(self._made) else None
