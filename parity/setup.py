"""What two runs are before any step: optimizer, groups, what is trained, attention, buffers, how weights are drawn."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, permutations
from typing import Any

import torch
from torch import Tensor, nn

from parity.calls import first_of, tensors_of, whole
from parity.compare import RowKey, compare_value
from parity.errors import InputError
from parity.names import NameMap
from parity.samplers import SIGNIFICANT
from parity.verdict import Row

Setup = dict[str, Any]
"""Plain values that JSON takes; see :func:`setup_of`."""

EQUAL = 1e-9
"""Relative: the same numbers summed in another order in float64."""

OWN = ("params", "param_names", "foreach", "fused", "capturable", "initial_lr", "max_lr", "min_lr", "swa_lr")
"""What of a parameter group is no setting: tensors, names, which kernels compute a formula, schedulers' notes."""

NAMED_AT_MOST = 5
"""Parameters with the same difference that a row names."""

NAMED = ("requires_grad", "buffers")
"""Entries of a setup that are by parameters' and buffers' names."""

SAID_BY_BOTH = ("attention", "clip")
"""Entries that say nothing where one side has none."""


def optimizer_for(make: Callable[[Any], Any], module: nn.Module) -> Any:
    """An optimizer from a factory of parameters or of a model; None where nothing is trained.

    A factory whose one argument is called ``model`` or ``module``, or is annotated as one, is given the module.

    Raises:
        InputError: a list of several, which nothing steps.
    """
    parameters = [value for value in module.parameters() if value.requires_grad]
    if not parameters:
        return None
    first = next(iter(inspect.signature(make).parameters.values()), None)
    whole = first is not None and (first.name in ("model", "module") or "Module" in str(first.annotation))
    made = make(module if whole else parameters)
    if isinstance(made, (list, tuple)):
        expected = "one object with `step` that holds them, and `state_dict` and `load_state_dict` to resume"
        raise InputError("side", "optimizer", f"a {type(made).__name__} of {len(made)}", expected)
    return made


def groups_of(optimizer: Any) -> list[dict[str, Any]]:
    """The parameter groups, also of what wraps a torch optimizer or several of them."""
    return [group for inner in optimizers_in(optimizer, set()) for group in inner.param_groups]


def optimizers_in(value: Any, seen: set[int]) -> Iterator[Any]:
    """What has parameter groups: the optimizer itself, or those that it holds."""
    if id(value) in seen or isinstance(value, (nn.Module, Tensor)):
        return
    seen.add(id(value))
    if hasattr(value, "param_groups"):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from optimizers_in(item, seen)
    else:
        held = getattr(value, "__dict__", {}).values()
        held = [one for one in held if isinstance(one, (list, Mapping)) or hasattr(one, "step")]
        yield from optimizers_in(held, seen)


def rate_of(optimizer: Any) -> float:
    """The first group's learning rate; NaN where there is none."""
    groups = groups_of(optimizer)
    return float(groups[0].get("lr", math.nan)) if groups else math.nan


def setup_of(module: nn.Module, optimizer: Any = None) -> Setup:
    """Read a run's setup from its live objects.

    Args:
        module: fresh, before the other side's weights are copied into it: ``initial`` says how it draws its own.
        optimizer: None for a side that is only run forward. ``grouped`` has the settings of each trained parameter,
            none of one in no group.
    """
    saved, parameters = module.state_dict(), dict(module.named_parameters())
    buffers = {name: value for name, value in module.named_buffers() if name in saved}
    setup: Setup = {
        "requires_grad": {name: value.requires_grad for name, value in parameters.items()},
        "attention": sorted({*attentions(module).values()}),
        "buffers": {name: f"{value.dtype} {list(value.shape)}" for name, value in buffers.items()},
        "initial": {name: moments(value) for name, value in parameters.items() if value.is_floating_point()},
    }
    if optimizer is not None:
        inner = [*optimizers_in(optimizer, set())] or [optimizer]
        setup["optimizer"] = ", ".join(map(kind_of, inner))
        setup["groups"] = [_plain(group) for group in groups_of(optimizer)]
        held = {id(one): said for group, said in zip(groups_of(optimizer), setup["groups"]) for one in group["params"]}
        trained = {name: value for name, value in parameters.items() if value.requires_grad}
        if not held.keys().isdisjoint(map(id, trained.values())):  # else it steps copies of its own
            setup["grouped"] = {name: held.get(id(value), {}) for name, value in trained.items()}
    return setup


def kind_of(optimizer: Any) -> str:
    """The name of its class; of one that adds nothing but how it is made, that of the class below it."""
    for one, below in pairwise(type(optimizer).__mro__):  # torch puts a profiled ``step`` into the class that it meets
        own = {name: value for name, value in vars(one).items() if callable(value) and name != "__init__"}
        theirs: dict[str, Any] = {name: getattr(below, name, None) for name in own}
        if any(inspect.unwrap(value) is not inspect.unwrap(theirs[name]) for name, value in own.items()):
            return one.__name__
    return type(optimizer).__name__


def attentions(module: nn.Module) -> dict[str, str]:
    """The implementation that a part's configuration names, by the part."""
    parts = [(name, part) for name, part in module.named_modules() if hasattr(part, "config")]
    said = {name: part.config for name, part in parts if not _has_config_inside(part)}
    named = {name: getattr(config, "_attn_implementation", None) for name, config in said.items()}
    return {name: str(one) for name, one in named.items() if one}


def attention_row(row: Row, expected: nn.Module, found: nn.Module) -> Row:
    """A failed row on the attention of a module and of its copy, with the parts where it is another."""
    mine, theirs = attentions(expected), attentions(found)
    apart = [name or "(whole)" for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    if row.tensor != "attention" or row.passed:
        return row
    return replace(
        row, detail=f"found {sorted({*theirs.values()})} in {_some(apart)}, expected {sorted({*mine.values()})}"
    )


def _has_config_inside(module: nn.Module) -> bool:
    """A model's own configuration says nothing of an attention that has one by itself."""
    return any(hasattr(part, "config") for part in module.modules() if part is not module)


def settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """What of a parameter group is a setting."""
    return {name: value for name, value in group.items() if name not in OWN}


def with_first_rates(setup: Setup, steps: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Put the rates of the first step, which may be set by hand, in the place of those that groups were built with."""
    for group, used in zip(setup.get("groups", ()), steps[1] if len(steps) > 1 else ()):
        group.update({"lr": _plain(used)["lr"]} if "lr" in used else {})


def varied(steps: Sequence[Sequence[Mapping[str, Any]]]) -> Setup:
    """Settings of groups that do not stay as they are built, but for the rate: by group and name, one entry a step.

    Args:
        steps: the groups' settings as they are built, then in every step.
    """
    built, *rest = [[_plain(group) for group in groups] for groups in steps]
    named = [(n, key, value) for n, group in enumerate(built) for key, value in group.items() if key != "lr"]
    held = [(f"{n}.{key}", value, [groups[n].get(key) for groups in rest]) for n, key, value in named]
    return {name: values for name, value, values in held if any(one != value for one in values)}


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a parameter group as JSON would give them back."""
    text = json.dumps(
        settings(group), default=lambda value: value.tolist() if isinstance(value, Tensor) else str(value)
    )
    return dict(json.loads(text))


def moments(values: Tensor) -> list[float]:
    """Mean, standard deviation, kurtosis, number of entries, in float64."""
    wide = whole(values.detach()).to("cpu", torch.float64)
    mean = wide.mean()
    variance = (wide - mean).square().mean()
    kurtosis = (wide - mean).pow(4).mean() / variance.square() if variance > 0 else torch.ones(())
    return [float(mean), float(variance.sqrt()), float(kurtosis), wide.numel()]


def setting_rows(subject: RowKey, expected: Setup, found: Setup, names: NameMap) -> list[Row]:
    """One row for everything that either side says it runs with; what one side alone says is a difference.

    Parameters are by the port's names. Those of one side alone are the business of ``weights``, and may be fused or
    copied. A module without a configuration names no attention, and a step of a side's own may clip without saying how.
    Where both sides say which parameter has which settings, that is one row, and how the same groups are split or
    ordered is of no account.
    """
    left_out = [
        "initial",
        "grouped",
        "ranks",
        *(key for key in SAID_BY_BOTH if not (expected.get(key) and found.get(key))),
    ]
    sides = [{key: value for key, value in side.items() if key not in left_out} for side in (expected, found)]
    sides = [{**side, "groups": [*map(settings, side["groups"])]} if "groups" in side else side for side in sides]
    grouped = "grouped" in expected and "grouped" in found
    if grouped and all(group in one["groups"] for one, other in permutations(sides) for group in other["groups"]):
        sides[1]["groups"] = sides[0]["groups"]
    for key in NAMED:
        mine, theirs = _renamed(key, expected, found, names)
        both = [name for name in mine if name in theirs]
        sides = [{**side, key: {name: held[name] for name in both}} for side, held in zip(sides, (mine, theirs))]
    mine, theirs = (_flat(side) for side in sides)
    rows = [
        compare_value(subject, "configuration", name, mine.get(name, "nothing"), theirs.get(name, "nothing"))
        for name in sorted({*mine, *theirs})
    ]
    return [*rows, *([_grouped_row(subject, expected, found, names)] if grouped else [])]


def _grouped_row(subject: RowKey, expected: Setup, found: Setup, names: NameMap) -> Row:
    """The settings of every parameter that both train: what differs, and of which. Fused ones have their parts'."""
    mine, theirs = _renamed("grouped", expected, found, names)
    for entry in names.fused.values():
        parts = [expected["grouped"][name] for name in entry.originals if name in expected["grouped"]]
        mine |= {entry.port: parts[0] if parts.count(parts[0]) == len(parts) else {"groups": parts}} if parts else {}
    apart: dict[str, list[str]] = {}
    for name in (name for name in theirs if mine.get(name, theirs[name]) != theirs[name]):
        said = _differing(theirs[name], mine[name]), _differing(mine[name], theirs[name])
        apart.setdefault("found {}, expected {}".format(*said), []).append(name)
    count = float(sum(map(len, apart.values())))
    detail = "; ".join(f"{said}: {_some(held)}" for said, held in apart.items())
    return subject.row("configuration", "groups.parameters", count, 0.0, not count, detail)


def _differing(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Those of the settings that are others on the other side."""
    apart = {key: own.get(key, "nothing") for key in {**other, **own} if own.get(key) != other.get(key)}
    return ", ".join(f"{key} {value}" for key, value in apart.items()) if own else "no group"


def _some(names: list[str]) -> str:
    """All names, or the first few."""
    first, more = ", ".join(names[:NAMED_AT_MOST]), len(names) - NAMED_AT_MOST
    return f"{first} and {more} more" if more > 0 else first


def _renamed(key: str, expected: Setup, found: Setup, names: NameMap) -> tuple[dict[str, Any], dict[str, Any]]:
    theirs = found.get(key, {})
    return names.rename(expected.get(key, {}), {*theirs}), theirs


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Entries of nested mappings and of lists of mappings by dotted names."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = list(enumerate(value))
    else:
        return {name: list(value) if isinstance(value, tuple) else value}
    return {
        word: entry for key, item in items for word, entry in _flat(item, f"{name}.{key}" if name else str(key)).items()
    }


def initial_rows(subject: RowKey, expected: Setup, found: Setup, names: NameMap) -> list[Row]:
    """How each side draws what both have: mean and standard deviation in standard errors; constants must be equal.

    What a side leaves NaN and does not train is to be loaded, and has no row.
    """
    mine, theirs = _renamed("initial", expected, found, names)
    trained = _renamed("requires_grad", expected, found, names)
    given = {
        name
        for drawn, wanted in zip((mine, theirs), trained)
        for name, (mean, *_) in drawn.items()
        if math.isnan(mean) and not wanted.get(name, True)
    }
    shared = [name for name in sorted(mine) if name in theirs and name not in given]
    return [row for name in shared for row in _drawn_alike(subject, name, mine[name], theirs[name])]


def _drawn_alike(subject: RowKey, name: str, *sides: list[float]) -> list[Row]:
    errors = {
        "mean": math.hypot(*(std / count**0.5 for _, std, _, count in sides)),
        "std": math.hypot(*(std * ((kurtosis - 1) / (4 * count)) ** 0.5 for _, std, kurtosis, count in sides)),
    }
    rows = []
    for place, (quantity, error) in enumerate(errors.items()):
        mine, theirs = (side[place] for side in sides)
        gap = abs(mine - theirs)
        measured = 0.0 if gap <= EQUAL * abs(mine) else gap / error if error else math.inf
        detail, passed = f"{mine:.4g} / {theirs:.4g}", measured <= SIGNIFICANT
        rows.append(subject.row(f"initial {quantity}", name, measured, SIGNIFICANT, passed, detail))
    return rows


def pattern_loss(module: nn.Module, batch: Any) -> Tensor:
    """The default loss: the output's own ``loss`` if it has one, else the distance of its first tensor to a pattern.

    Of a tuple, the first number with a gradient is its loss: (tokens, loss, metrics). With gradients off, where a
    checkpoint is opened or a side is only run forward, the first real number.

    The pattern is a cosine over the entries, so that every entry has a gradient of its own and the loss is far from 0.
    """
    if isinstance(batch, Mapping):
        out = module(**batch)
    else:
        out = module(*batch) if isinstance(batch, tuple) else module(batch)
    own = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    if isinstance(out, tuple) and own is None:
        numbers = [one for one in out if isinstance(one, Tensor) and one.dim() == 0 and one.is_floating_point()]
        own = next((one for one in numbers if one.requires_grad or not torch.is_grad_enabled()), None)
    if isinstance(own, Tensor):
        return own
    values = first_of(tensors_of(out))
    if values is None:
        raise TypeError(f"{type(module).__name__} gave {type(out).__name__} without a tensor: hand in a loss")
    values = values.float() if not (values.is_floating_point() or values.is_complex()) else values
    pattern = torch.arange(values.numel(), device=values.device, dtype=torch.float64).cos()
    return (values - pattern.reshape(values.shape).to(values.dtype)).square().mean()
