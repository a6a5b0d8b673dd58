"""What two runs are before any step: optimizer, groups, what is trained, attention, buffers, how weights are drawn."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from parity.names import NameMap
from parity.observe import SIGNIFICANT, Compared

Setup = dict[str, Any]
"""Plain values that JSON takes; see :func:`setup_of`."""

EQUAL = 1e-9
"""Relative: the same numbers summed in another order in float64."""

OWN = ("params", "param_names", "foreach", "fused", "capturable")
"""What of a parameter group is no setting: tensors, names, and which kernels compute the same formula."""


def optimizer_for(make: Callable[[Any], Any], module: nn.Module) -> Any:
    """An optimizer from a factory of parameters or of a model; None where nothing is trained.

    A factory whose one argument is called ``model`` or ``module``, or is annotated as one, is given the module.
    """
    parameters = [value for value in module.parameters() if value.requires_grad]
    if not parameters:
        return None
    first = next(iter(inspect.signature(make).parameters.values()), None)
    whole = first is not None and (first.name in ("model", "module") or "Module" in str(first.annotation))
    return make(module if whole else parameters)


def groups_of(optimizer: Any) -> list[dict[str, Any]]:
    """The parameter groups, also of what wraps a torch optimizer or several of them."""
    return [group for inner in _optimizers(optimizer, set()) for group in inner.param_groups]


def _optimizers(value: Any, seen: set[int]) -> Iterator[Any]:
    if id(value) in seen or isinstance(value, (nn.Module, Tensor)):
        return
    seen.add(id(value))
    if hasattr(value, "param_groups"):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _optimizers(item, seen)
    else:
        held = list(getattr(value, "__dict__", {}).values())
        yield from _optimizers([one for one in held if isinstance(one, (list, Mapping)) or hasattr(one, "step")], seen)


def rate_of(optimizer: Any) -> float:
    """The first group's learning rate; NaN where there is none."""
    groups = groups_of(optimizer)
    return float(groups[0].get("lr", math.nan)) if groups else math.nan


def setup_of(module: nn.Module, optimizer: Any = None, schedule: Any = None) -> Setup:
    """Read a run's setup from its live objects.

    Args:
        module: fresh, before the other side's weights are copied into it: ``initial`` says how it draws its own.
        optimizer: None for a side that is only run forward.
        schedule: a learning rate scheduler.
    """
    setup: Setup = {
        "requires_grad": {name: value.requires_grad for name, value in module.named_parameters()},
        "attention": attention_of(module),
        "buffers": {name: f"{value.dtype} {list(value.shape)}" for name, value in _saved_buffers(module)},
        "initial": {name: moments(value) for name, value in module.named_parameters() if value.is_floating_point()},
    }
    if optimizer is not None:
        setup["optimizer"] = type(optimizer).__name__
        setup["groups"] = [_settings(group) for group in groups_of(optimizer)]
    if schedule is not None:
        setup["schedule"] = type(schedule).__name__
    return setup


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter group as JSON would give it back."""
    settings = {name: value for name, value in group.items() if name not in OWN}
    text = json.dumps(settings, default=lambda value: value.tolist() if isinstance(value, Tensor) else str(value))
    return {**json.loads(text), "parameters": len(group["params"])}


def attention_of(module: nn.Module) -> list[str]:
    """The attention implementations that the configurations of a model and its parts name."""
    configs = (getattr(part, "config", None) for part in module.modules())
    return sorted({str(name) for config in configs if (name := getattr(config, "_attn_implementation", None))})


def _saved_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    saved = module.state_dict()
    return [(name, value) for name, value in module.named_buffers() if name in saved]


def moments(values: Tensor) -> list[float]:
    """Mean, standard deviation, kurtosis, number of entries, in float64."""
    wide = values.detach().to("cpu", torch.float64)
    mean = wide.mean()
    variance = (wide - mean).square().mean()
    kurtosis = (wide - mean).pow(4).mean() / variance.square() if variance > 0 else torch.ones(())
    return [float(mean), float(variance.sqrt()), float(kurtosis), wide.numel()]


def compare_setups(expected: Setup, found: Setup, names: NameMap | None = None) -> list[Compared]:
    """One row for everything that either of two setups has, parameters by the port's names.

    A fresh and a reopened module's are compared in the same way.
    """
    names = names or NameMap()
    rows = [_equal(key, "", expected.get(key), found.get(key)) for key in ("optimizer", "schedule", "attention")]
    rows = [row for row in rows if row.detail != "None / None"]
    rows += _groups(expected.get("groups"), found.get("groups"))
    for key in ("requires_grad", "buffers"):
        mine, theirs = names.rename(expected.get(key, {}), {*found.get(key, {})}), found.get(key, {})
        known = sorted({*mine, *(name for name in theirs if names.expected_of(name))})
        rows += [_equal(key, name, mine.get(name), theirs.get(name)) for name in known]
    mine, theirs = names.rename(expected.get("initial", {}), {*found.get("initial", {})}), found.get("initial", {})
    for name in (name for name in sorted(mine) if name in theirs):
        rows += _drawn_alike(name, mine[name], theirs[name])
    return rows


def _equal(quantity: str, name: str, expected: object, found: object) -> Compared:
    return Compared(quantity, name, float(expected != found), 0.0, expected == found, f"{expected} / {found}")


def _groups(expected: Any, found: Any) -> list[Compared]:
    sides = cast(list[list[dict[str, Any]]], [expected or [], found or []])
    rows = [_equal("groups", "number", *map(len, sides))] if expected or found else []
    for number, (mine, theirs) in enumerate(zip(*sides)):
        settings = sorted({*mine, *theirs})
        rows += [_equal("groups", f"{name}[{number}]", mine.get(name), theirs.get(name)) for name in settings]
    return rows


def _drawn_alike(name: str, *sides: list[float]) -> list[Compared]:
    """Mean and standard deviation, in standard errors; constants must be equal."""
    errors = {
        "mean": math.hypot(*(std / count**0.5 for _, std, _, count in sides)),
        "std": math.hypot(*(std * ((kurtosis - 1) / (4 * count)) ** 0.5 for _, std, kurtosis, count in sides)),
    }
    rows = []
    for place, (quantity, error) in enumerate(errors.items()):
        mine, theirs = (side[place] for side in sides)
        gap = abs(mine - theirs)
        measured = 0.0 if gap <= EQUAL * abs(mine) else gap / error if error else math.inf
        detail = f"{mine:.4g} / {theirs:.4g}"
        rows.append(Compared(f"initial {quantity}", name, measured, SIGNIFICANT, measured <= SIGNIFICANT, detail))
    return rows


def broken(weights: Mapping[str, Tensor]) -> Compared | None:
    """One row for weights that are not finite, from which everything else follows; None where all are."""
    bad = {name: int((~torch.isfinite(value)).sum()) for name, value in weights.items() if value.is_floating_point()}
    names = [name for name, count in bad.items() if count]
    if not names:
        return None
    total = sum(bad.values())
    detail = f"{total} NaN or Inf in {len(names)} of {len(weights)} before any step: {', '.join(names[:5])}"
    return Compared("finite", names[0], float(total), 0.0, False, detail)
