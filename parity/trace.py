"""What a run computed: named tensors, one point of every curve per micro-batch, and what it says it ran with.

Tensor names, with j the micro-batch of the first optimizer step, s the step of an unrolled model::

    mb{j}.batch.<input>, mb{j}.target_p, mb{j}.step0.hidden_in, mb{j}.step{s}.{hidden,logits,loss}, mb{j}.loss
    mb{j}.grad.<parameter>, mb{j}.grad_norm, mb{j}.path.<s>.<i>, init.<name>, after.<name>, final.<name>
    mb{j}.call.<module>#{n}.{into,out,into_grad,out_grad}.<place>
    mb{j}.tap.<name>#{n}, mb{j}.tap_grad.<name>#{n}, mb{j}.draw.<name>#{n}

Gradients are those before clipping. ``init`` are parameters and saved buffers at the start, ``after`` after the first
optimizer step, ``final`` after the last. Call n of a module is counted from 0; a place is an argument or an output.

On disk a trace is a folder, ``trace.json`` beside ``tensors.safetensors``: written on one machine, compared on another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor

from parity.errors import InputError
from parity.files import read_object, read_tensors, strict_json, validated, write_folder

FORMAT = 4
"""Formats that are read too: 1 has no ``ties`` in its points and no audits, 2 no ``spread`` and ``precision``, and in 3
a spread is of root mean squares alone."""

META, TENSORS = "trace.json", "tensors.safetensors"
STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

GROUPS = {"init": "init.", "after": "after.", "final": "final.", "calls": "mb0.call."}
"""Groups of tensors that a trace may do without, and how their names begin."""

Group = Annotated[str, Field(pattern=f"^({'|'.join(GROUPS)})$")]

STATES = {"init": ("weights", "weights"), "after": ("optimizer_step", "after_step1"), "final": ("curve", "final")}
"""Groups of parameters and buffers, each with the check and the quantity of the tolerance table it belongs to."""

MICRO_BATCH = re.compile(r"mb(\d{1,9})\.")


@dataclass(frozen=True)
class Point:
    """One micro-batch. ``grad_norm`` is the norm before clipping, where one was taken.

    ``correct`` and ``top`` count the ``rows`` whose target is the first choice, and among the first 1, 2, ...; ``ties``
    how many of those counts rounding decides: rows whose target's logit lies so close to the place's edge.
    ``logged`` holds what an algorithm logs besides loss, rate and hits, under its names.
    """

    __pydantic_config__ = STRICT

    epoch: int
    loss: float
    step_losses: tuple[float, ...]
    grad_norm: float | None
    lr_used: float
    lr_after: float
    correct: int = 0
    rows: int = 0
    top: tuple[int, ...] = ()
    stepped: bool = True
    logged: Mapping[str, float] = field(default_factory=dict)
    ties: tuple[int, ...] = ()


@dataclass(frozen=True)
class LargestError:
    """The largest difference of one kind in one step.

    ``rounding`` counts units of rounding: the difference over the dtype's epsilon times the size of the numbers that
    were added up. ``expected`` and ``found`` are the entry's values, ``index`` is where it stands in ``parameter``.
    """

    __pydantic_config__ = STRICT

    parameter: str
    rounding: float
    index: tuple[int, ...]
    expected: float
    found: float


@dataclass(frozen=True)
class StepAudit:
    """One optimizer step, numbered from 1: the rate and norms it used, and the worst deviation of each kind.

    ``norm_before`` is the gradients' norm after the backward, ``norm_after`` of what reached the optimizer.
    ``deviations`` are by quantity: ``clip``, ``weight``, and the optimizer's states (``exp_avg``, ...). ``counted`` is
    ``step`` where the optimizer's own count is right for every parameter, of the steps in which it had a gradient, else
    as much more or less as the worst is off; None where it does not count. ``against`` says whose formula of the update
    it was, ``reference`` or ``library``; empty where none is known.
    """

    __pydantic_config__ = STRICT

    step: int
    lr_expected: float | None
    lr_used: float
    norm_before: float
    norm_after: float
    counted: int | None
    deviations: dict[str, LargestError] = field(default_factory=dict)
    against: str = "reference"


@dataclass
class Trace:
    """Everything one run of one case gave.

    ``configuration`` holds what the run says it ran with, read from its live objects where it can be. ``trained`` and
    ``frozen`` name the parameters, so that gradient flow can be judged. ``audits`` has one entry for every optimizer
    step that was computed again from what entered it. ``precision`` is the dtype that it computes in, where that is not
    ``dtype``: autocast's. ``spread`` is what one rounding does to it, see :func:`parity.allowed.spread_of`.
    """

    __pydantic_config__ = STRICT

    run: Annotated[str, Field(min_length=1)]
    case: str
    dtype: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)
    prints: list[str] = field(default_factory=list)
    configuration: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    trained: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    calls: tuple[Annotated[str, Field(pattern=r"^.+#[0-9]{1,9}$")], ...] = ()
    left_out: tuple[Group, ...] = ()
    audits: list[StepAudit] = field(default_factory=list)
    precision: str = ""
    spread: dict[str, Sequence[tuple[float, float, float] | float]] = field(default_factory=dict)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below ``prefix``, without it: ``group("after.")`` is the state after the first step."""
        return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}

    def keep(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Put copies of tensors below ``prefix``, on the CPU."""
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self.tensors.update({f"{prefix}.{name}": copy for name, copy in copies.items()})

    def micro_batches(self) -> list[int]:
        """Indices of the micro-batches of the first optimizer step."""
        return sorted({int(match[1]) for match in map(MICRO_BATCH.match, self.tensors) if match})

    def without(self, groups: Iterable[str]) -> Trace:
        """The same without some of ``GROUPS``."""
        left_out = tuple(dict.fromkeys([*self.left_out, *groups]))
        prefixes = tuple(GROUPS[name] for name in left_out)
        tensors = {name: value for name, value in self.tensors.items() if not name.startswith(prefixes)}
        return replace(self, tensors=tensors, left_out=left_out, calls=() if "calls" in left_out else self.calls)


def write_trace(trace: Trace, folder: str | Path) -> Path:
    """Write a trace, whole or not at all; what lay there before is replaced.

    Raises:
        InputError: the folder cannot be written.
    """
    points, audits = ([asdict(one) for one in many] for many in (trace.curve, trace.audits))
    content = {
        "format_version": FORMAT,
        **vars(trace),
        "curve": points,
        "audits": audits,
        "tensors": sorted(trace.tensors),
    }

    def fill(partial: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in trace.tensors.items()}
        save_file(tensors, partial / TENSORS)
        (partial / META).write_text(strict_json(content))

    write_folder(Path(folder), fill)
    return Path(folder)


def read_trace(folder: str | Path) -> Trace:
    """Read what :func:`write_trace` wrote, perhaps elsewhere and under other versions.

    Raises:
        InputError: no such folder, a damaged file, another format, or tensors that the list does not name.
    """
    folder = Path(folder)
    file = folder / META
    if not folder.is_dir():
        raise InputError(folder, "trace", "no such folder", "a folder that parity trace or write_trace wrote")
    document = read_object(file, "a trace's trace.json")
    version, listed = document.pop("format_version", None), document.pop("tensors", None)
    if version not in range(1, FORMAT + 1):
        raise InputError(file, "format_version", repr(version)[:80], f"1 to {FORMAT}")
    tensors = read_tensors(folder / TENSORS)
    odd = sorted(tensors.keys() ^ (set(map(str, listed)) if isinstance(listed, list) else set()))
    if odd:
        found = "a tensor that trace.json does not list" if odd[0] in tensors else "missing"
        raise InputError(folder / TENSORS, odd[0], found, "the tensors that trace.json lists")
    whole = {"left_out": [], "audits": [], "precision": "", "spread": {}, **document, "tensors": tensors}
    absent = [one.name for one in fields(Trace) if one.name not in whole]
    if absent:
        raise InputError(file, absent[0], "nothing", "a value")
    return cast(Trace, validated(file, Trace, whole))
