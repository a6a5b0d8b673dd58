"""The first operator below a module that computes what the other side computes nowhere.

Operators are followed by a torch dispatch mode (``torch.utils._python_dispatch`` and the autograd metadata are semi-
private: they are used here and nowhere else). Values of one side are looked up among those of the other, in whatever
order and layout they were computed; going back from the outputs that differ, an operator is astray as long as its own
output is nowhere on the other side. The first of them in the order of execution is named.
"""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count, permutations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from parity.calls import WHOLE, lone, tensors_of
from parity.locate import LOSS, Agree, Finding
from parity.names import NameMap

HERE, TORCH = Path(__file__).parent, Path(torch.__file__).parent
FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
MOST_AXES, MOST_PLACES = 5, 3
DIGEST = 1e-2
"""Values are looked at closer if the sums of their absolute entries are this close, far wider than any bound."""


class Live(NamedTuple):
    """A side that can be run: a fresh module, what makes its loss (or only its forward) of it, and its inputs.

    ``leaves`` are inputs whose gradients count as parameters' do.
    """

    module: nn.Module
    run: Callable[[], Any]
    leaves: Mapping[str, Tensor] = {}

    def gradients(self) -> dict[str, Tensor]:
        """By name, of the parameters and inputs that have one."""
        named = {**dict(self.module.named_parameters()), **self.leaves}
        return {name: value.grad for name, value in named.items() if value.grad is not None}


@dataclass(eq=False)
class Value:
    """A tensor as it was when an operator read or wrote it; ``source`` is the operator that made it, if one did."""

    tensor: Tensor
    source: int | None
    size: float


@dataclass(eq=False)
class Operator:
    """One operator: its name, file and line in the user's code, what it read and what it gave."""

    name: str
    site: str
    backward: bool
    into: list[Value]
    out: list[Value] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.name}{' (backward)' if self.backward else ''} at {self.site}"


class Log(TorchDispatchMode):
    """Every operator of the body."""

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Else FlexAttention, which compiles itself, refuses to run under the mode."""
        return True

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self._held: dict[tuple[int, int], tuple[Tensor, Value]] = {}
        self._last: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        node, number = _node(), len(self.operators)
        name = str(getattr(func, "_overloadpacket", func)).replace("::", ".")
        into = [self.value(tensor) for tensor in tensors_of((args, kwargs or {})).values()]
        self.operators.append(operator := Operator(name, _site(node), node is not None, into))
        out = func(*args, **(kwargs or {}))
        operator.out = [self.value(tensor, number) for tensor in tensors_of(out).values()]
        return out

    def value(self, tensor: Tensor, made: int | None = None) -> Value:
        """What a tensor is at this moment; it is kept, so that no other one gets its identity."""
        key, storage = (id(tensor), tensor._version), _storage(tensor)
        if made is not None:
            self._last[storage] = made
        if made is not None or key not in self._held:
            kept = tensor.detach().to("cpu", copy=True)
            size = 0.0 if kept.is_complex() else float(kept.double().abs().sum())
            self._held[key] = tensor, Value(kept, self._last.get(storage), size)
        return self._held[key][1]


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return id(tensor)


def _node() -> Any:
    """The autograd node that runs, in a backward."""
    return getattr(torch._C, "_current_autograd_node", lambda: None)()


def _site(node: Any) -> str:
    """File and line in the user's code, the innermost; in a backward, of the forward that it goes back."""
    if node is None:
        return _place(_frames(sys._getframe(1))) or "torch"
    entries = map(FRAME.search, reversed(node.metadata.get("traceback_", ())))
    return _place((match["file"], int(match["line"])) for match in entries if match) or str(node.name())


def _frames(frame: Any) -> Iterator[tuple[str, int]]:
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def _place(frames: Iterable[tuple[str, int]]) -> str:
    """The first frame of a user's; of torch's, where the harness called torch itself."""
    own = ""
    for file, line in frames:
        path = Path(file)
        if path.parent == HERE:
            break
        if TORCH not in path.parents and path.suffix == ".py":
            return f"{path.name}:{line}"
        own = own or (f"torch/{path.relative_to(TORCH)}:{line}" if (TORCH / "nn") in path.parents else "")
    return own


@dataclass
class Run:
    """Operators of one side, and the values that are to be traced back."""

    log: Log
    last: list[Value]
    backward: bool = False

    def source(self, value: Value) -> int | None:
        """The operator that made a value; of a backward alone, since its forward agrees."""
        made = value.source
        return None if made is None or (self.backward and not self.log.operators[made].backward) else made


def follow(live: Live, module: str, number: int) -> Run:
    """The operators of one call of a module, ``(loss)`` for everything that the run does."""
    log, last, calls, watching = Log(), list[Value](), count(), contextlib.ExitStack()

    def before(*_: Any) -> None:
        if next(calls) == number:
            watching.enter_context(log)

    def after(part: nn.Module, args: Any, out: Any) -> None:
        if log.operators and not last:
            watching.close()
            last.extend(log.value(tensor) for tensor in tensors_of(lone(out)).values())

    if module == LOSS:
        with log:
            out = live.run()
        return Run(log, [log.value(tensor) for tensor in tensors_of(out).values()])
    part = live.module.get_submodule("" if module == WHOLE else module)
    with contextlib.ExitStack() as hooks, watching:
        hooks.callback(part.register_forward_pre_hook(before).remove)
        hooks.callback(part.register_forward_hook(after).remove)
        live.run()
    return Run(log, last)


def follow_back(live: Live) -> Log:
    """The operators of a loss and its backward; parameters have their gradients afterwards."""
    log = Log()
    live.module.zero_grad()
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True, check_nan=False), log:
        warnings.simplefilter("ignore")
        live.run().backward()
    return log


def with_operator(finding: Finding, original: Live, port: Live, agree: Agree, names: NameMap | None = None) -> Finding:
    """The same finding with the first operator below its module, on both sides.

    Args:
        finding: of the forward, the loss or the gradients; others stay as they are.
        original, port: run alike, with the same weights, batch and seed.
        agree: as for modules.
        names: the original's modules to the port's.
    """
    names = names or NameMap()
    if finding.direction == "backward":
        return replace(finding, operator=first_apart(*_wrong_gradients(original, port, agree, names), agree))
    source = _in_original(finding, original.module, names)
    if finding.direction != "forward" or source is None:
        return finding
    runs = follow(original, *source), follow(port, finding.module, finding.call)
    pairs = list(zip(runs[0].last, runs[1].last))
    wrong = [pair for pair in pairs if not agree(pair[0].tensor, pair[1].tensor)]
    if wrong:
        runs = Run(runs[0].log, [pair[0] for pair in wrong]), Run(runs[1].log, [pair[1] for pair in wrong])
    return replace(finding, operator=first_apart(*runs, agree))


def _in_original(finding: Finding, module: nn.Module, names: NameMap) -> tuple[str, int] | None:
    """The original's call behind one of the port's."""
    if finding.module == LOSS:
        return LOSS, 0
    mapped = (call for call, target in names.calls.items() if target == (finding.module, finding.call))
    known = (name or WHOLE for name, _ in module.named_modules())
    plain = ((name, finding.call) for name in known if names.to_port(name) == finding.module)
    return next(mapped, next(plain, None))


def _wrong_gradients(original: Live, port: Live, agree: Agree, names: NameMap) -> tuple[Run, Run]:
    logs = follow_back(original), follow_back(port)
    mine, theirs = original.gradients(), port.gradients()
    held = names.rename({name: name for name in mine}, theirs)
    wrong = [name for name, own in held.items() if name not in theirs or not agree(mine[own], theirs[name])]
    found = [logs[1].value(theirs[name]) for name in wrong if name in theirs]
    expected = [logs[0].value(mine[held[name]]) for name in wrong]
    return Run(logs[0], expected, backward=True), Run(logs[1], found, backward=True)


def first_apart(expected: Run, found: Run, agree: Agree) -> str:
    """``aten.add at port.py:41 / aten.add at original.py:37``; empty where none is astray.

    Where several go astray from values that agree, the others' places follow.
    """
    pools = _Pool(expected.log, agree), _Pool(found.log, agree)
    theirs, mine = _astray(found, pools[0]), _astray(expected, pools[1])
    if not theirs:
        return f"{mine[0]} of the original has no counterpart in the port" if mine else ""
    first = theirs[0]
    words = f"{first} / {mine[0]}" if mine else f"{first}; the original computes nothing of the kind"
    fresh = [one for one in theirs if all(pools[0].knows(value) for value in one.into) and one.site != first.site]
    also = list(dict.fromkeys(map(str, fresh)))[:MOST_PLACES]
    return f"{words}; also {', '.join(also)}" if also else words


def _astray(run: Run, pool: _Pool) -> list[Operator]:
    """The operators behind the last values, as far as theirs are nowhere on the other side, in order of execution."""
    seen: set[int] = set()
    left = list(run.last)
    while left:
        value = left.pop()
        source = run.source(value)
        if source is None or source in seen or (value not in run.last and pool.knows(value)):
            continue
        seen.add(source)
        left += run.log.operators[source].into
    operators = [run.log.operators[number] for number in sorted(seen)]
    return [one for one in operators if "empty" not in one.name and not all(map(pool.knows, one.out))]


class _Pool:
    """All values of a side, to be looked up."""

    def __init__(self, log: Log, agree: Agree) -> None:
        self.agree = agree
        self.values: dict[int, list[Value]] = {}
        self.known: dict[Value, bool] = {}
        for value in dict.fromkeys(value for one in log.operators for value in (*one.into, *one.out)):
            self.values.setdefault(value.tensor.numel(), []).append(value)

    def knows(self, value: Value) -> bool:
        if value not in self.known:
            others = self.values.get(value.tensor.numel(), [])
            self.known[value] = any(_same(other, value, self.agree) for other in others)
        return self.known[value]


def _same(expected: Value, found: Value, agree: Agree) -> bool:
    """The same entries, in the same order or with the axes in another one."""
    mine, theirs = expected.tensor, found.tensor
    close = expected.size == found.size or abs(expected.size - found.size) <= DIGEST * expected.size
    if not close or mine.is_floating_point() != theirs.is_floating_point():
        return False
    if agree(mine.flatten(), theirs.flatten()):
        return True
    mine, theirs = mine.squeeze(), theirs.squeeze()
    if mine.shape == theirs.shape or sorted(mine.shape) != sorted(theirs.shape) or mine.dim() > MOST_AXES:
        return False
    turned = (mine.permute(order) for order in permutations(range(mine.dim())))
    return any(one.shape == theirs.shape and agree(one, theirs) for one in turned)
