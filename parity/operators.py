"""The first operator below a module that computes what the other side computes nowhere.

Operators are followed by a torch dispatch mode (``torch.utils._python_dispatch`` and the autograd metadata are semi-
private: they are used here and nowhere else). Values of one side are looked up among those of the other, in whatever
order and layout they were computed; going back from the outputs that differ, an operator is astray as long as its own
output is nowhere on the other side. The first of them in the order of execution is named.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count, permutations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from parity.calls import WHOLE, gradients_of, lone, part_of, tensors_of
from parity.locate import LOSS, Comparator
from parity.names import NameMap
from parity.verdict import Finding

HERE, TORCH = Path(__file__).parent, Path(torch.__file__).parent
FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
MOST_AXES = 5
DIGEST = 1e-2
"""Values are looked at closer if the sums of their absolute entries are this close, far wider than any bound."""


class Live(NamedTuple):
    """A side that can be run: a fresh module, and what makes its loss (or only its forward) of it."""

    module: nn.Module
    run: Callable[[], Any]


@dataclass(eq=False)
class Value:
    """A tensor as it was when an operator read or wrote it; ``source`` is the operator that made it, if one did."""

    tensor: Tensor
    source: Operator | None
    size: float


@dataclass(eq=False)
class Operator:
    """One operator: its name, file and line in the user's code, what it read and what it gave."""

    name: str
    site: str
    backward: bool
    number: int
    into: list[Value]
    out: list[Value] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.name}{' (backward)' if self.backward else ''} at {self.site}"


class Log(TorchDispatchMode):
    """Every operator of the body, all values by their number of entries, and those that are to be traced back.

    A ``backward`` is traced through its own operators alone, since its forward agrees.
    """

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Else FlexAttention, which compiles itself, refuses to run under the mode."""
        return True

    def __init__(self, backward: bool = False) -> None:
        super().__init__()
        self.backward, self.count = backward, 0
        self.last: list[Value] = []
        self.values: dict[int, list[Value]] = defaultdict(list)
        self._held: dict[tuple[int, int], tuple[Tensor, Value]] = {}
        self._makers: dict[int, Operator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        node, kwargs = torch._C._current_autograd_node(), kwargs or {}
        name = str(getattr(func, "_overloadpacket", func)).replace("::", ".")
        into = [self.value(tensor) for tensor in tensors_of((args, kwargs)).values()]
        operator = Operator(name, _site(node), node is not None, self.count, into)
        self.count += 1
        out = func(*args, **kwargs)
        operator.out = [self.value(tensor, operator) for tensor in tensors_of(out).values()]
        return out

    def value(self, tensor: Tensor, made: Operator | None = None) -> Value:
        """What a tensor is at this moment; it is kept, so that no other one gets its identity."""
        key, storage = (id(tensor), tensor._version), _storage(tensor)
        if made is not None:
            self._makers[storage] = made
        if made is not None or key not in self._held:
            kept = tensor.detach().to("cpu", copy=True)
            size = 0.0 if kept.is_complex() else float(kept.double().abs().sum())
            self._held[key] = tensor, (value := Value(kept, self._makers.get(storage), size))
            self.values[kept.numel()].append(value)
        return self._held[key][1]


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return id(tensor)


def _site(node: Any) -> str:
    """File and line in the user's code, the innermost; in a backward, of the forward that it goes back."""
    if node is None:
        frames = traceback.walk_stack(sys._getframe(1))
        return _place((frame.f_code.co_filename, line) for frame, line in frames) or "torch"
    entries = map(FRAME.search, reversed(node.metadata.get("traceback_", ())))
    return _place((match["file"], int(match["line"])) for match in entries if match) or str(node.name())


def _place(frames: Iterable[tuple[str, int]]) -> str:
    """The first frame of a user's; of torch's, where the harness called torch itself."""
    own = ""
    for path, line in ((Path(file), line) for file, line in frames if file != __file__):
        if path.parent == HERE:
            break
        if TORCH not in path.parents and path.suffix == ".py":
            return f"{path.name}:{line}"
        own = own or (f"torch/{path.relative_to(TORCH)}:{line}" if TORCH / "nn" in path.parents else "")
    return own


def follow(live: Live, module: str, number: int) -> Log:
    """The operators of one call of a module, ``(loss)`` for everything that the run does, traced back from its end."""
    log, calls, watching = Log(), count(), contextlib.ExitStack()
    if module == LOSS:
        with log:
            out = live.run()
        log.last = [log.value(tensor) for tensor in tensors_of(out).values()]
        return log

    def before(*_: Any) -> None:
        if next(calls) == number:
            watching.enter_context(log)

    def after(part: nn.Module, args: Any, out: Any) -> None:
        if log.count and not log.last:
            watching.close()
            log.last = [log.value(tensor) for tensor in tensors_of(lone(out)).values()]

    part = part_of(live.module, module)
    with contextlib.ExitStack() as hooks, watching:
        hooks.callback(part.register_forward_pre_hook(before).remove)
        hooks.callback(part.register_forward_hook(after).remove)
        live.run()
    return log


def follow_back(live: Live) -> Log:
    """The operators of a loss and its backward; parameters have their gradients afterwards."""
    log = Log(backward=True)
    live.module.zero_grad()
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True, check_nan=False), log:
        warnings.simplefilter("ignore")
        live.run().backward()
    return log


def with_operator(
    finding: Finding, original: Live, port: Live, apart: Comparator, names: NameMap | None = None
) -> Finding:
    """The same finding with the first operator below its module, on both sides.

    Args:
        finding: of the forward, the loss or the gradients; others stay as they are.
        original, port: run alike, with the same weights, batch and seed.
        apart: as for modules.
        names: the original's modules to the port's.
    """
    names = names or NameMap()
    if finding.direction == "backward":
        return replace(finding, operator=first_apart(*_backward(original, port, apart, names), apart))
    source = _in_original(finding, original.module, names)
    if finding.direction != "forward" or source is None:
        return finding
    logs = follow(original, *source), follow(port, finding.module, finding.call)
    wrong = [pair for pair in zip(logs[0].last, logs[1].last) if apart(pair[0].tensor, pair[1].tensor)]
    for log, values in zip(logs, zip(*wrong)):
        log.last = list(values)
    return replace(finding, operator=first_apart(*logs, apart))


def _in_original(finding: Finding, module: nn.Module, names: NameMap) -> tuple[str, int] | None:
    """The original's call behind one of the port's."""
    if finding.module == LOSS:
        return LOSS, 0
    mapped = (call for call, target in names.calls.items() if target == (finding.module, finding.call))
    known = (name or WHOLE for name, _ in module.named_modules())
    plain = ((name, finding.call) for name in known if names.to_port(name) == finding.module)
    return next(mapped, next(plain, None))


def _backward(original: Live, port: Live, apart: Comparator, names: NameMap) -> tuple[Log, Log]:
    """Both sides' backward, traced back from the gradients that differ."""
    logs = follow_back(original), follow_back(port)
    mine, theirs = (gradients_of(dict(live.module.named_parameters())) for live in (original, port))
    held = names.rename({name: name for name in mine}, theirs)
    wrong = [name for name, own in held.items() if name not in theirs or apart(mine[own], theirs[name])]
    logs[0].last = [logs[0].value(mine[held[name]]) for name in wrong]
    logs[1].last = [logs[1].value(theirs[name]) for name in wrong if name in theirs]
    return logs


def first_apart(expected: Log, found: Log, apart: Comparator) -> str:
    """``aten.add at port.py:41 / aten.add at original.py:37``; empty where none is astray."""
    known, known_there = _lookup(expected, apart), _lookup(found, apart)
    theirs, mine = _astray(found, known), _astray(expected, known_there)
    if not theirs:
        return f"{mine[0]} of the original has no counterpart in the port" if mine else ""
    return f"{theirs[0]} / {mine[0]}" if mine else f"{theirs[0]}; the original computes nothing of the kind"


def _lookup(log: Log, apart: Comparator) -> Callable[[Value], bool]:
    """Is a value of the other side to be found here?"""

    @functools.cache
    def known(value: Value) -> bool:
        return any(_same(other, value, apart) for other in log.values[value.tensor.numel()])

    return known


def _astray(log: Log, known: Callable[[Value], bool]) -> list[Operator]:
    """The operators behind the last values, as far as theirs are nowhere on the other side, in order of execution."""
    seen: set[Operator] = set()
    left = list(log.last)
    while left:
        value = left.pop()
        source = value.source
        if source is None or source in seen or (log.backward and not source.backward):
            continue
        if value in log.last or not known(value):
            seen.add(source)
            left += source.into
    operators = sorted(seen, key=lambda one: one.number)
    return [one for one in operators if "empty" not in one.name and not all(map(known, one.out))]


def _same(expected: Value, found: Value, apart: Comparator) -> bool:
    """The same entries, in the same order or with the axes in another one."""
    mine, theirs = expected.tensor, found.tensor
    close = expected.size == found.size or abs(expected.size - found.size) <= DIGEST * expected.size
    if not close or mine.is_floating_point() != theirs.is_floating_point():
        return False
    if not apart(mine.flatten(), theirs.flatten()):
        return True
    mine, theirs = mine.squeeze(), theirs.squeeze()
    if mine.shape == theirs.shape or sorted(mine.shape) != sorted(theirs.shape) or mine.dim() > MOST_AXES:
        return False
    turned = (mine.permute(order) for order in permutations(range(mine.dim())))
    return any(one.shape == theirs.shape and not apart(one, theirs) for one in turned)
