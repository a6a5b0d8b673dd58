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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
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
    into: list[Value] = field(default_factory=list)
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

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        node = _node()
        name = str(getattr(func, "_overloadpacket", func)).replace("::", ".")
        operator = Operator(name, _site(node), node is not None)
        operator.into = [self.value(tensor) for tensor in tensors_of((args, kwargs)).values()]
        out = func(*args, **kwargs)
        self.operators.append(operator)
        operator.out = [self._made(tensor) for tensor in tensors_of(out).values()]
        return out

    def value(self, tensor: Tensor) -> Value:
        """What a tensor is at this moment."""
        key = id(tensor), tensor._version
        if key not in self._held:
            self._held[key] = tensor, _value(tensor, self._last.get(_storage(tensor)))
        return self._held[key][1]

    def _made(self, tensor: Tensor) -> Value:
        """An output; the tensor is kept, so that no other one gets its identity."""
        number = len(self.operators) - 1
        self._last[_storage(tensor)] = number
        value = _value(tensor, number)
        self._held[id(tensor), tensor._version] = tensor, value
        return value


def _value(tensor: Tensor, source: int | None) -> Value:
    kept = tensor.detach().to("cpu", copy=True)
    return Value(kept, source, float(kept.to(torch.float64).abs().sum()) if not kept.is_complex() else 0.0)


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return id(tensor)


def _node() -> Any:
    """The autograd node that runs, in a backward."""
    current = getattr(torch._C, "_current_autograd_node", None)
    return current() if current is not None else None


def _site(node: Any) -> str:
    """File and line in the user's code, the innermost; in a backward, of the forward that it goes back."""
    if node is None:
        return _place(_frames(sys._getframe(1))) or "torch"
    entries = reversed(node.metadata.get("traceback_", ()))
    return _place((match["file"], int(match["line"])) for match in map(FRAME.search, entries) if match) or node.name()


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
    log, counted = Log(), [0]
    last: list[Value] = []
    stack = contextlib.ExitStack()

    def before(*_: Any) -> None:
        counted[0] += 1
        if counted[0] == number + 1:
            stack.enter_context(log)

    def after(part: nn.Module, args: Any, out: Any) -> None:
        if counted[0] == number + 1:
            stack.close()
            last.extend(log.value(tensor) for tensor in tensors_of(lone(out)).values())

    with stack, contextlib.ExitStack() as hooks:
        if module == LOSS:
            with log:
                out = live.run()
            return Run(log, [log.value(tensor) for tensor in tensors_of(out).values()])
        part = live.module.get_submodule("" if module == WHOLE else module)
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
        runs = _wrong_gradients(original, port, agree, names)
    elif finding.direction == "forward":
        module, number = _in_original(finding, original.module, names)
        runs = follow(original, module, number), follow(port, finding.module, finding.call)
        runs = _differing_outputs(*runs, agree)
    else:
        return finding
    return replace(finding, operator=first_apart(*runs, agree))


def _in_original(finding: Finding, module: nn.Module, names: NameMap) -> tuple[str, int]:
    if finding.module == LOSS:
        return LOSS, 0
    for call, target in names.calls.items():
        if target == (finding.module, finding.call):
            return call
    known = (name or WHOLE for name, _ in module.named_modules())
    return next((name for name in known if names.to_port(name) == finding.module), finding.module), finding.call


def _differing_outputs(expected: Run, found: Run, agree: Agree) -> tuple[Run, Run]:
    """Both with those outputs alone that do not agree; with all of them where their numbers differ."""
    pairs = list(zip(expected.last, found.last))
    wrong = [pair for pair in pairs if not agree(pair[0].tensor, pair[1].tensor)]
    if len(expected.last) != len(found.last) or not wrong:
        return expected, found
    return Run(expected.log, [pair[0] for pair in wrong]), Run(found.log, [pair[1] for pair in wrong])


def _wrong_gradients(original: Live, port: Live, agree: Agree, names: NameMap) -> tuple[Run, Run]:
    logs = follow_back(original), follow_back(port)
    grads = original.gradients(), port.gradients()
    mine, theirs = names.parameters(grads[0], grads[1]), grads[1]
    plain = names.rename({name: name for name in grads[0]}, grads[1])
    wrong = [n for n in plain if n in mine and (n not in theirs or not agree(mine[n], theirs[n]))]
    expected = [logs[0].value(grads[0][plain[name]]) for name in wrong]
    found = [logs[1].value(theirs[name]) for name in wrong if name in theirs]
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
        self.known: dict[int, bool] = {}
        for value in {id(v): v for one in log.operators for v in (*one.into, *one.out)}.values():
            self.values.setdefault(value.tensor.numel(), []).append(value)

    def knows(self, value: Value) -> bool:
        if id(value) not in self.known:
            others: Sequence[Value] = self.values.get(value.tensor.numel(), ())
            self.known[id(value)] = any(_same(other, value, self.agree) for other in others)
        return self.known[id(value)]


def _same(expected: Value, found: Value, agree: Agree) -> bool:
    """The same entries, in the same order or with the axes in another one."""
    mine, theirs = expected.tensor, found.tensor
    alike = mine.numel() == theirs.numel() and mine.is_floating_point() == theirs.is_floating_point()
    close = abs(expected.size - found.size) <= DIGEST * max(expected.size, found.size)
    if not alike or not (close or expected.size != expected.size or expected.size == float("inf")):
        return False
    if agree(mine.flatten(), theirs.flatten()):
        return True
    mine, theirs = mine.squeeze(), theirs.squeeze()
    return mine.shape != theirs.shape and any(agree(turned, theirs) for turned in _turned(mine, theirs))


def _turned(tensor: Tensor, like: Tensor) -> Iterator[Tensor]:
    """The tensor with its axes in every order that gives the other's shape."""
    if sorted(tensor.shape) == sorted(like.shape) and tensor.dim() <= MOST_AXES:
        orders = (order for order in permutations(range(tensor.dim())))
        yield from (t for order in orders if (t := tensor.permute(order)).shape == like.shape)
