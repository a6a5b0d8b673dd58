"""One optimizer step, computed again from what entered it: clipping, rate, update and the optimizer's own state.

An auditor writes down the gradients as the backward gave them, the weights, the optimizer's state and its rates, lets
the step happen, and holds what came out against formulas in float64. That leaves rounding alone as a difference, so the
audit is as sharp in the thousandth step as in the first, in bfloat16 as in float32, after a resume as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from parity.calls import gradients_of, whole
from parity.compare import RowKey, compare_series
from parity.tolerances import Tolerance
from parity.trace import LargestError, StepAudit
from parity.verdict import Against, Row

State = dict[str, Tensor]
"""An optimizer's tensors of one parameter, by torch's names."""

Update = Callable[[Tensor, Tensor, State, float, int], tuple[Tensor, State]]
"""Weight and state after step number n, from 1, of those before it, the gradient and the rate, all in one dtype."""

NOT_AGAIN = ("ASGD", "Adadelta", "Adafactor", "LBFGS", "Muon", "SparseAdam")
"""Torch's that are not a few operations entry by entry, whose rounding the bounds are for, or that take a closure."""

KERNELS = ("foreach", "fused", "capturable", "differentiable")
"""Settings that choose how a formula is computed."""


@dataclass(frozen=True)
class AdamW:
    """Loshchilov and Hutter 2019, algorithm 2, with both moments corrected for their start at zero."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decoupled: bool = True

    def __call__(self, weight: Tensor, gradient: Tensor, state: State, lr: float, step: int) -> tuple[Tensor, State]:
        """An :data:`Update`."""
        (beta1, beta2), zero = self.betas, torch.zeros_like(weight)
        if not self.decoupled:
            gradient = gradient + self.weight_decay * weight
        first = beta1 * state.get("exp_avg", zero) + (1 - beta1) * gradient
        second = beta2 * state.get("exp_avg_sq", zero) + (1 - beta2) * gradient.square()
        moved = lr / (1 - beta1**step) * first / ((second / (1 - beta2**step)).sqrt() + self.eps)
        shrunk = weight * (1 - lr * self.weight_decay) if self.decoupled else weight
        return shrunk - moved, {"exp_avg": first, "exp_avg_sq": second}


@dataclass(frozen=True)
class Repeated:
    """A step of another of torch's optimizers by torch itself, in the dtype of what it is given, without kernels."""

    kind: Callable[..., torch.optim.Optimizer]
    settings: Mapping[str, Any]

    def __call__(self, weight: Tensor, gradient: Tensor, state: State, lr: float, step: int) -> tuple[Tensor, State]:
        """An :data:`Update`."""
        parameter = weight.clone().requires_grad_()
        parameter.grad = gradient.clone()
        optimizer = self.kind([parameter])
        optimizer.param_groups[0].update({**self.settings, "lr": lr, **dict.fromkeys(KERNELS, False)})
        optimizer.state[parameter].update({name: value.clone() for name, value in state.items()})
        optimizer.step()
        after = {name: value for name, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}
        return parameter.detach(), after


@dataclass(frozen=True)
class Clip:
    """``norm``: all gradients scaled so that their global norm is at most ``limit``; ``value``: every entry cut."""

    kind: str
    limit: float

    def __call__(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The clipped gradients; torch's 1e-6 beside the norm keeps a zero gradient from dividing by zero."""
        if self.kind == "value":
            return {name: gradient.clamp(-self.limit, self.limit) for name, gradient in gradients.items()}
        factor = min(1.0, self.limit / (global_norm(gradients.values()) + 1e-6))
        return {name: gradient * factor for name, gradient in gradients.items()}

    def by_torch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Torch's own, in place."""
        clip_by = nn.utils.clip_grad_norm_ if self.kind == "norm" else nn.utils.clip_grad_value_
        clip_by(parameters, self.limit)


@dataclass(frozen=True)
class Rule:
    """What a step is to do: the update, the clipping before it, and the rate of optimizer step n = 0, 1, ...

    Without an ``update`` it is the optimizer's own, with the settings of each of its groups. Without a ``clip`` it is
    not said how gradients are clipped, and nothing is asked of it.
    """

    update: Update | None = None
    clip: Clip | None = None
    rate: Callable[[int], float] | None = None


def linear_schedule(step: int, total: int, warmup: int) -> float:
    """Factor on the peak rate at optimizer step ``step``: a linear way up over ``warmup`` steps, then down to 0."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (total - step) / max(1, total - warmup))


class Before(NamedTuple):
    """What enters the step of one parameter, its number ``step`` from 1; no ``update``: no formula of it is known."""

    weight: Tensor
    state: State
    step: int
    lr: float = math.nan
    update: Update | None = None


class StepAuditor:
    """Looks on while an optimizer steps.

    Args:
        rule: what a step is to do.
        parameters: those that train, by name.
        optimizer: torch's, or one that has its ``state`` and ``param_groups``.
    """

    def __init__(self, rule: Rule, parameters: Mapping[str, Tensor], optimizer: Any) -> None:
        self.rule, self.parameters, self.optimizer = rule, dict(parameters), optimizer
        self.audits: list[StepAudit] = []
        self._given: dict[str, Tensor] = {}
        self._before: dict[str, Before] = {}
        self._made: dict[str, int] = {}
        trained = [(name, value) for name, value in self.parameters.items() if value.requires_grad]
        self._reached: dict[str, Tensor] = {}
        self._hooks = [value.register_post_accumulate_grad_hook(partial(self._caught, name)) for name, value in trained]
        inner = getattr(optimizer, "optimizer", optimizer)
        if isinstance(inner, torch.optim.Optimizer):
            self._hooks.append(inner.register_step_pre_hook(self._begins))

    def close(self) -> None:
        """Stop looking on."""
        for hook in self._hooks:
            hook.remove()

    def _caught(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._given[name] = parameter.grad.detach().clone()

    def _gradients(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in gradients_of(self.parameters).items()}

    def entered(self) -> None:
        """The backward is done; nothing has been clipped, nothing has stepped. May be called again before the step.

        What has a gradient now was given that one: only now have several processes reduced it.
        """
        self._given.update(self._gradients())
        for name, value in self.parameters.items():
            state = {key: held.detach().clone() for key, held in self._state(value).items()}
            made = self._made.setdefault(name, self._counted(value) or 0)
            self._before[name] = Before(whole(value.detach()).clone(), state, made + 1)
        self._set()

    def _set(self) -> None:
        """Rates and settings, as they are set now. What is in no group stays, unless no parameter is in any."""
        first, groups = self.optimizer.param_groups[0], self.optimizer.param_groups
        groups = {id(value): group for group in groups for value in group["params"]}
        other = first if groups.keys().isdisjoint(map(id, self.parameters.values())) else None
        for name, before in self._before.items():
            group = groups.get(id(self.parameters[name]), other)
            update = stays if group is None else self.rule.update or update_of(self.optimizer, group)
            self._before[name] = before._replace(lr=float((group or first)["lr"]), update=update)
        self._rate = float(first["lr"])

    def _begins(self, *_: Any) -> None:
        """The optimizer itself steps, with what has been set by hand since the backward."""
        self._reached.update(self._gradients())
        self._set()

    def left(self) -> StepAudit:
        """The optimizer has stepped. Of one that is not torch's, the gradients it was given are still there."""
        done, rate = len(self.audits), self.rule.rate
        gradients = self._reached or self._gradients()
        self._made.update({name: self._before[name].step for name in gradients})
        counts = {name: self._counted(value) for name, value in self.parameters.items()}
        off = [count - self._made[name] for name, count in counts.items() if count is not None]
        worst: dict[str, LargestError] = {}
        for quantity, one in self._deviations(gradients):
            if quantity not in worst or one.rounding > worst[quantity].rounding:
                worst[quantity] = one
        updates = [before.update for before in self._before.values()]
        against = "library" if any(isinstance(update, Repeated) for update in updates) else "reference"
        audit = StepAudit(
            step=done + 1,
            lr_expected=None if rate is None else rate(done),
            lr_used=self._rate,
            norm_before=global_norm(self._given.values()),
            norm_after=global_norm(gradients.values()),
            counted=done + 1 + max(off, key=abs) if off else None,
            deviations=worst,
            against="" if None in updates else against,
        )
        self.audits.append(audit)
        self._given, self._reached = {}, {}
        return audit

    def _deviations(self, gradients: Mapping[str, Tensor]) -> Iterator[tuple[str, LargestError]]:
        """Every quantity of every parameter; without a gradient, one stays as it is."""
        clip = self.rule.clip
        clipped = {} if clip is None else clip({name: value.double() for name, value in self._given.items()})
        for name, parameter in self.parameters.items():
            gradient, weight = gradients.get(name), self._before[name].weight.double()
            if clip is not None and (name in clipped or gradient is not None):
                expected = clipped.get(name, torch.zeros_like(weight))  # zero where no backward gave one
                yield "clip", _deviation(name, expected, gradient, expected.abs())
            if gradient is None:
                yield "weight", _deviation(name, weight, whole(parameter.detach()), weight.abs())
            else:
                yield from self._updated(name, weight, gradient.double())

    def _updated(self, name: str, weight: Tensor, gradient: Tensor) -> Iterator[tuple[str, LargestError]]:
        """Weight and state; rounding is a multiple of what the same formulas make of absolute values."""
        before, parameter = self._before[name], self.parameters[name]
        if before.update is None:
            return
        state = {key: value.double() for key, value in before.state.items()}
        after, states = before.update(weight, gradient, state, before.lr, before.step)
        state = {key: value.abs() for key, value in state.items()}
        size, sizes = before.update(weight.abs(), gradient.abs(), state, before.lr, before.step)
        moved = (size - weight.abs()).abs()
        yield "weight", _deviation(name, after, whole(parameter.detach()), weight.abs() + moved)
        own = self._state(parameter)
        for key in (key for key in states if key != "step"):
            yield key, _deviation(name, states[key], own.get(key), sizes[key].abs())

    def _counted(self, parameter: Tensor) -> int | None:
        """How many steps of a parameter the optimizer says it has made; None where it does not count."""
        step = self.optimizer.state.get(parameter, {}).get("step")
        return None if step is None else int(step)

    def _state(self, parameter: Tensor) -> State:
        """The optimizer's tensors of a parameter."""
        held = self.optimizer.state.get(parameter, {})
        return {name: whole(value) for name, value in held.items() if isinstance(value, Tensor)}


def stays(weight: Tensor, gradient: Tensor, state: State, lr: float, step: int) -> tuple[Tensor, State]:
    """The :data:`Update` of what no optimizer steps."""
    return weight, {}


def update_of(optimizer: Any, group: Mapping[str, Any]) -> Update | None:
    """The formula of one of torch's optimizers with a group's settings; None for another class, and for going up."""
    kind = type(getattr(optimizer, "optimizer", optimizer))
    if not kind.__module__.startswith("torch.optim") or kind.__name__ in NOT_AGAIN or group.get("maximize"):
        return None
    if kind.__name__ in ("Adam", "AdamW") and not group["amsgrad"]:
        decoupled = kind.__name__ == "AdamW" or bool(group.get("decoupled_weight_decay"))
        return AdamW(tuple(group["betas"]), group["eps"], group["weight_decay"], decoupled)
    return Repeated(kind, {name: value for name, value in group.items() if name not in ("params", "param_names")})


def global_norm(tensors: Iterable[Tensor]) -> float:
    """Of all entries together, in float64; 0 without any."""
    norms = [tensor.double().norm() for tensor in tensors]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _deviation(name: str, expected: Tensor, found: Tensor | None, size: Tensor) -> LargestError:
    """Units of rounding are those of ``size``: of the numbers that were added up."""
    if found is None or found.shape != expected.shape:
        return LargestError(name, float("inf"), (), float(expected.norm()), float("nan"))
    if expected.numel() == 0:
        return LargestError(name, 0.0, (), 0.0, 0.0)
    eps, tiny = torch.finfo(found.dtype).eps, torch.finfo(found.dtype).tiny
    units = ((found.double() - expected).abs() / (eps * size).clamp(min=tiny)).nan_to_num(nan=math.inf, posinf=math.inf)
    flat = int(units.argmax())
    index = tuple(map(int, np.unravel_index(flat, tuple(units.shape))))
    return LargestError(name, float(units[index]), index, float(expected[index]), float(found[index]))


def update_rows(
    subject: RowKey, audits: Sequence[StepAudit], weights: Tolerance, states: Tolerance, steps: Tolerance
) -> list[Row]:
    """Weights and the optimizer's state after every step against the formulas; and how many steps it says it made."""
    known = {audit.against for audit in audits} or {subject.against.value}
    if "" in known:
        return [subject.inapplicable("no formula of this optimizer is known: its first step alone is compared")]
    subject = replace(subject, against=Against(min(known)))
    rows = [audit_row(subject, audits, "weight", weights)]
    for name in sorted({name for audit in audits for name in audit.deviations} - {"clip", "weight"}):
        rows.append(audit_row(subject, audits, name, states))
    if any(audit.counted is not None for audit in audits):
        made, counted = [float(audit.step) for audit in audits], [float(audit.counted or 0) for audit in audits]
        rows.append(compare_series(subject, "steps", "counted", made, counted, steps))
    return rows


def audit_row(subject: RowKey, audits: Sequence[StepAudit], quantity: str, allowed: Tolerance) -> Row:
    """The worst of all steps in one quantity, ``clip`` for example: did what the backward gave arrive as it should?"""
    found = [(audit, audit.deviations[quantity]) for audit in audits if quantity in audit.deviations]
    if not found:
        return subject.failed(quantity, "", "nothing compared: no optimizer step was seen", allowed.bound)
    audit, worst = max(found, key=lambda entry: math.inf if math.isnan(entry[1].rounding) else entry[1].rounding)
    beyond = [audit.step for audit, one in found if not one.rounding <= allowed.bound]
    detail = f"worst in step {audit.step} of {worst.parameter} at {worst.index}: expected {worst.expected!r}, "
    detail += f"found {worst.found!r}"
    if beyond:
        detail += f"; first beyond the bound in step {beyond[0]}, {len(beyond)} of {len(found)} steps are"
    passed = worst.rounding <= allowed.bound
    return subject.row(quantity, f"{len(found)} steps", worst.rounding, allowed.bound, passed, detail)
