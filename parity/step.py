"""Every optimizer step recomputed from what entered it: clipping, rate, update and the optimizer's own state.

An auditor writes down the gradients as the backward gave them, the weights, the optimizer's state and its rate, lets
the step happen, and holds what came out against formulas of its own in float64. That leaves rounding alone as a
difference, so the audit is as sharp in the thousandth step as in the first, in bfloat16 as in float32, after a resume
as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parity.compare import Subject, compare_series
from parity.tolerances import Tolerance
from parity.trace import Deviation, StepAudit
from parity.verdict import Row

State = dict[str, Tensor]
"""An optimizer's tensors of one parameter, by torch's names."""


@dataclass(frozen=True)
class AdamW:
    """Loshchilov and Hutter 2019, algorithm 2, with both moments corrected for their start at zero."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decoupled: bool = True

    def __call__(self, weight: Tensor, gradient: Tensor, state: State, lr: float, step: int) -> tuple[Tensor, State]:
        """Weight and state after step number ``step``, from 1; all in the dtype of ``weight``."""
        beta1, beta2 = self.betas
        if not self.decoupled:
            gradient = gradient + self.weight_decay * weight
        first = beta1 * _or_zeros(state, "exp_avg", weight) + (1 - beta1) * gradient
        second = beta2 * _or_zeros(state, "exp_avg_sq", weight) + (1 - beta2) * gradient.square()
        moved = lr / (1 - beta1**step) * first / self._scale(second, step)
        shrunk = weight * (1 - lr * self.weight_decay) if self.decoupled else weight
        return shrunk - moved, {"exp_avg": first, "exp_avg_sq": second}

    def reach(self, weight: Tensor, gradient: Tensor, state: State, lr: float, step: int) -> State:
        """The size of the numbers that are added up in each result: rounding is a multiple of these."""
        beta1, beta2 = self.betas
        first = beta1 * _or_zeros(state, "exp_avg", weight).abs() + (1 - beta1) * gradient.abs()
        second = beta2 * _or_zeros(state, "exp_avg_sq", weight) + (1 - beta2) * gradient.square()
        moved = lr / (1 - beta1**step) * first / self._scale(second, step)
        return {"weight": weight.abs() + moved, "exp_avg": first, "exp_avg_sq": second}

    def _scale(self, second: Tensor, step: int) -> Tensor:
        return (second / (1 - self.betas[1] ** step)).sqrt() + self.eps


@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum as torch has it (Sutskever et al. 2013, the rate outside the velocity)."""

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __call__(self, weight: Tensor, gradient: Tensor, state: State, lr: float, step: int) -> tuple[Tensor, State]:
        """Weight and state after step number ``step``; the first velocity is the gradient itself."""
        gradient = gradient + self.weight_decay * weight
        if not self.momentum:
            return weight - lr * gradient, {}
        before = state.get("momentum_buffer")
        velocity = gradient if before is None else self.momentum * before + (1 - self.dampening) * gradient
        direction = gradient + self.momentum * velocity if self.nesterov else velocity
        return weight - lr * direction, {"momentum_buffer": velocity}

    def reach(self, weight: Tensor, gradient: Tensor, state: State, lr: float, step: int) -> State:
        """The size of the numbers that are added up in each result."""
        before = _or_zeros(state, "momentum_buffer", weight).abs()
        velocity = gradient.abs() + self.weight_decay * weight.abs() + self.momentum * before
        return {"weight": weight.abs() + 2 * lr * velocity, "momentum_buffer": velocity}


Update = AdamW | SGD


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


@dataclass(frozen=True)
class Rule:
    """What a step is to do: the update, the clipping before it, and the rate of optimizer step n = 0, 1, ...

    Without a ``clip`` it is not said how gradients are clipped, and nothing is asked of it.
    """

    update: Update
    clip: Clip | None = None
    rate: Callable[[int], float] | None = None


def linear_schedule(step: int, total: int, warmup: int) -> float:
    """Factor on the peak rate at optimizer step ``step``: a linear way up over ``warmup`` steps, then down to 0."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (total - step) / max(1, total - warmup))


class StepAuditor:
    """Looks on while an optimizer steps.

    Args:
        rule: what a step is to do; without one only rates and norms are written down.
        parameters: those that train, by name.
        optimizer: torch's, or one that has its ``state`` and ``param_groups``.
        done: optimizer steps made before, in a run that goes on.
    """

    def __init__(self, rule: Rule | None, parameters: Mapping[str, Tensor], optimizer: Any, done: int = 0) -> None:
        self.rule, self.parameters, self.optimizer, self.done = rule, dict(parameters), optimizer, done
        self.audits: list[StepAudit] = []
        self._given: dict[str, Tensor] = {}
        self._before: tuple[dict[str, Tensor], dict[str, State], float] = ({}, {}, 0.0)
        self._hooks = [
            value.register_post_accumulate_grad_hook(self._catch(name))
            for name, value in self.parameters.items()
            if value.requires_grad
        ]

    def close(self) -> None:
        """Stop looking on."""
        for hook in self._hooks:
            hook.remove()

    def _catch(self, name: str) -> Callable[[Tensor], None]:
        def caught(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self._given[name] = parameter.grad.detach().clone()

        return caught

    def entered(self) -> None:
        """The backward is done; nothing has been clipped, nothing has stepped. May be called again before the step."""
        weights = {name: value.detach().clone() for name, value in self.parameters.items()}
        states = {name: self._state(value) for name, value in self.parameters.items()}
        self._before = weights, states, self.lr

    def left(self) -> StepAudit:
        """The optimizer has stepped, and the gradients it was given are still there."""
        weights, states, lr_used = self._before
        gradients = {name: value.grad.detach() for name, value in self.parameters.items() if value.grad is not None}
        number, rule = self.done + 1, self.rule
        audit = StepAudit(
            step=number,
            lr_expected=None if rule is None or rule.rate is None else rule.rate(self.done),
            lr_used=lr_used,
            norm_before=global_norm(self._given.values()),
            norm_after=global_norm(gradients.values()),
            counted=self._counted(),
            deviations={} if rule is None else self._deviations(rule, gradients, weights, states, lr_used, number),
        )
        self.audits.append(audit)
        self.done, self._given = number, {}
        return audit

    def _deviations(
        self,
        rule: Rule,
        gradients: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        states: Mapping[str, State],
        lr: float,
        number: int,
    ) -> dict[str, Deviation]:
        given = {name: value.double() for name, value in self._given.items()}
        clipped = {} if rule.clip is None else rule.clip(given)
        found: dict[str, list[tuple[str, Tensor, Tensor | None, Tensor]]] = {name: [] for name in self.parameters}
        for name, value in clipped.items():
            found[name].append(("clip", value, gradients.get(name), value.abs()))
        for name, gradient in gradients.items():
            if rule.clip is not None and name not in clipped:  # no backward gave it
                found[name].append(("clip", torch.zeros_like(gradient).double(), gradient, gradient.double().abs()))
            state = {key: value.double() for key, value in states[name].items()}
            before = weights[name].double(), gradient.double(), state
            weight, state = rule.update(*before, lr, number)
            reach, own = rule.update.reach(*before, lr, number), self._state(self.parameters[name])
            found[name].append(("weight", weight, self.parameters[name].detach(), reach["weight"]))
            found[name] += [(key, value, own.get(key), reach[key]) for key, value in state.items()]
        for name in set(self.parameters) - set(gradients):  # without a gradient a parameter stays as it is
            still = weights[name].double()
            found[name].append(("weight", still, self.parameters[name].detach(), still.abs()))
        worst: dict[str, Deviation] = {}
        for name, results in found.items():
            for quantity, expected, result, size in results:
                one = _deviation(name, expected, result, size)
                if quantity not in worst or not one.rounding <= worst[quantity].rounding:
                    worst[quantity] = one
        return worst

    @property
    def lr(self) -> float:
        """The rate of the first group; the ports and most others have one rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _state(self, parameter: Tensor) -> State:
        """Copies of the optimizer's tensors that have the parameter's shape."""
        held = self.optimizer.state.get(parameter, {})
        return {
            name: value.detach().clone()
            for name, value in held.items()
            if isinstance(value, Tensor) and value.shape == parameter.shape and name != "step"
        }

    def _counted(self) -> int | None:
        counts = {int(held["step"]) for held in self.optimizer.state.values() if "step" in held}
        return max(counts) if counts else None


def update_of(optimizer: Any) -> Update | None:
    """The formula of one of torch's optimizers with its own hyperparameters; None for a class without one here."""
    group, kind = optimizer.param_groups[0], type(getattr(optimizer, "optimizer", optimizer)).__name__
    if group.get("amsgrad") or group.get("maximize"):
        return None
    if kind in ("Adam", "AdamW"):
        decoupled = kind == "AdamW" or bool(group.get("decoupled_weight_decay"))
        return AdamW(tuple(group["betas"]), group["eps"], group["weight_decay"], decoupled)
    if kind == "SGD":
        return SGD(group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"])
    return None


def global_norm(tensors: Iterable[Tensor]) -> float:
    """Of all entries together, in float64; 0 without any."""
    norms = [tensor.double().norm() for tensor in tensors]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _or_zeros(state: State, name: str, like: Tensor) -> Tensor:
    return state[name] if name in state else torch.zeros_like(like)


def _deviation(name: str, expected: Tensor, found: Tensor | None, reach: Tensor) -> Deviation:
    if found is None or found.shape != expected.shape:
        return Deviation(name, float("inf"), (), float(expected.norm()), float("nan"))
    eps, tiny = torch.finfo(found.dtype).eps, torch.finfo(found.dtype).tiny
    units = (found.double() - expected).abs() / (eps * reach).clamp(min=tiny)
    if units.numel() == 0:
        return Deviation(name, 0.0, (), 0.0, 0.0)
    flat = int(units.nan_to_num(nan=float("inf")).flatten().argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), units.shape)) if units.dim() else ()
    rounding = float(units.flatten()[flat])
    return Deviation(name, rounding, index, float(expected.flatten()[flat]), float(found.flatten()[flat]))


def clip_rows(subject: Subject, audits: Sequence[StepAudit], allowed: Tolerance) -> list[Row]:
    """Did what the backward gave reach the optimizer clipped as the rule says, in every step?"""
    return [_row(subject, audits, "clip", allowed)]


def schedule_rows(subject: Subject, audits: Sequence[StepAudit], allowed: Tolerance) -> list[Row]:
    """The rate of every step against the schedule's formula."""
    rates = [(audit.lr_expected, audit.lr_used) for audit in audits if audit.lr_expected is not None]
    if not rates:
        return [subject.row("rate", "", None, allowed.bound, False, "no optimizer step with a known rate was seen")]
    return [compare_series(subject, "rate", "every step", [a for a, _ in rates], [b for _, b in rates], allowed)]


def update_rows(
    subject: Subject, audits: Sequence[StepAudit], weights: Tolerance, states: Tolerance, steps: Tolerance
) -> list[Row]:
    """Weights and the optimizer's state after every step against the formulas; and how many steps it says it made."""
    rows = [_row(subject, audits, "weight", weights)]
    for name in sorted({name for audit in audits for name in audit.deviations} - {"clip", "weight"}):
        rows.append(_row(subject, audits, name, states))
    if any(audit.counted is not None for audit in audits):
        made, counted = [float(audit.step) for audit in audits], [float(audit.counted or 0) for audit in audits]
        rows.append(compare_series(subject, "steps", "counted", made, counted, steps))
    return rows


def _row(subject: Subject, audits: Sequence[StepAudit], quantity: str, allowed: Tolerance) -> Row:
    found = [(audit, audit.deviations[quantity]) for audit in audits if quantity in audit.deviations]
    if not found:
        return subject.row(quantity, "", None, allowed.bound, False, "nothing compared: no optimizer step was seen")
    audit, worst = max(found, key=lambda entry: entry[1].rounding)
    beyond = [audit.step for audit, one in found if not one.rounding <= allowed.bound]
    detail = f"worst in step {audit.step} of {worst.parameter} at {worst.index}: expected {worst.expected!r}, "
    detail += f"found {worst.found!r}"
    if beyond:
        detail += f"; first beyond the bound in step {beyond[0]}, {len(beyond)} of {len(found)} steps are"
    passed = worst.rounding <= allowed.bound
    return subject.row(quantity, f"{len(found)} steps", worst.rounding, allowed.bound, passed, detail)
