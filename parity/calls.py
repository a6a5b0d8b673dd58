"""What passes through a module and its parts during a forward, and the gradients that come back.

Values are found wherever they are: tensors, tuples, dicts, dataclasses, model outputs, block masks. A module that is
called several times has several calls, numbered from 0. Every argument reaches a module as the object that it is; the
gradient of an input is what this call alone sent back.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils import _pytree as pytree

from parity.trace import Trace

WHOLE = "(whole)"
"""The module itself, whose name in torch is the empty string."""

CALLS = "mb0.call."
CALL = re.compile(
    r"mb0\.call\.(?P<module>.*)#(?P<number>\d{1,9})\.(?P<kind>into_grad|out_grad|into|out)(?:\.(?P<place>.*))?"
)
PLAIN = (dict, tuple, list)
MOST_ENTRIES = 2**24


def dotted(*words: str) -> str:
    """``a.b`` of those words that are not empty."""
    return ".".join(filter(None, words))


def below(name: str, prefix: str) -> bool:
    """Is ``prefix`` the name or one of the modules around it?"""
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def tensors_of(value: Any, place: str = "") -> dict[str, Tensor]:
    """All tensors by their place: ``0``, ``0.1``, ``logits``; a lone tensor's place is the empty string.

    A ``BlockMask`` is its dense form, bool [B, H, T, S], true where a position is seen.
    """
    if isinstance(value, Tensor):
        return {place: value}
    inside = ((dotted(place, str(word)), part) for word, part in _parts(value))
    return {where: tensor for at, part in inside for where, tensor in tensors_of(part, at).items()}


def equal_tensors(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Are they the same under the same names, to the bit?"""
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    """What a structure holds, each with its name or number; types that torch's pytrees know have numbers."""
    flex = sys.modules.get("torch.nn.attention.flex_attention")
    if flex is not None and isinstance(value, flex.BlockMask):
        return [("", dense_mask(value))]
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value)
    if isinstance(value, (tuple, list)):
        return enumerate(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [(one.name, getattr(value, one.name)) for one in fields(value)]
    known = pytree.SUPPORTED_NODES.get(type(value))
    return enumerate(known.flatten_fn(value)[0]) if known else ()


def dense_mask(mask: Any) -> Tensor:
    """A ``BlockMask`` entry by entry: bool [B, H, T, S]. Seen is what a listed block holds and the rule allows.

    One of more than ``MOST_ENTRIES`` is its table: bool, block by block.
    """
    from torch.nn.attention.flex_attention import create_mask

    blocks, (rows, columns) = mask.to_dense().bool(), mask.seq_lengths
    batch, heads = blocks.shape[:2]
    if batch * heads * rows * columns > MOST_ENTRIES:
        return blocks
    rule = create_mask(mask.mask_mod, batch, heads, rows, columns, device=str(blocks.device))
    for axis, size in ((-2, mask.BLOCK_SIZE[0]), (-1, mask.BLOCK_SIZE[1])):
        blocks = blocks.repeat_interleave(size, dim=axis)
    return rule & blocks[..., :rows, :columns]


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor changed; other objects, a key/value cache for example, stay themselves."""
    return pytree.tree_map_only(Tensor, change, value, is_leaf=lambda part: type(part) not in PLAIN)


def snapshot(value: Any) -> Any:
    """A copy that later steps cannot change: tensors detached, other objects copied as far as they let themselves."""
    return pytree.tree_map(_copied, value, is_leaf=lambda part: type(part) not in PLAIN)


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value, _detached(value))
    except Exception:  # locks, handles of other libraries
        return value


def _detached(value: Any) -> dict[int, Any]:
    """For ``deepcopy``: what stands for the tensors inside an object, a key/value cache for example; modules stay."""
    memo: dict[int, Any] = {}
    seen, left = set[int](), [value]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, (Tensor, nn.Module)):
            memo[id(one)] = one.detach().clone() if isinstance(one, Tensor) else one
        elif isinstance(one, (Mapping, list, tuple, set)):
            left += one.values() if isinstance(one, Mapping) else one
        else:
            left += getattr(one, "__dict__", {}).values()
    return memo


def first_of(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The first floating tensor, or the first at all."""
    floating = (tensor for tensor in tensors.values() if tensor.is_floating_point())
    return next(floating, next(iter(tensors.values()), None))


def lone(out: Any) -> Any:
    """A structure that holds one tensor is that tensor, so that ``(out, None)`` and ``out`` are the same."""
    tensors = tensors_of(out)
    return next(iter(tensors.values())) if len(tensors) == 1 else out


def whole(value: Tensor) -> Tensor:
    """All of a tensor that may lie in shards; every process must ask for it, in the same order."""
    found: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return found


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and of the buffers that are saved."""
    held = {**module.state_dict(), **dict(module.named_parameters())}
    return {name: whole(value.detach()).clone() for name, value in held.items() if isinstance(value, Tensor)}


def gradients_of(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the parameters that have one."""
    return {name: whole(value.grad) for name, value in parameters.items() if value.grad is not None}


def part_of(module: nn.Module, name: str) -> nn.Module:
    """A module inside another, or by ``WHOLE`` that itself."""
    return module.get_submodule("" if name == WHOLE else name)


@dataclass(eq=False)
class Call:
    """One call of one module: values as they were then, gradients once a backward has run.

    ``into`` and ``out`` are keyed by argument or place and hold every tensor: states, ids, positions, masks of any
    form.
    """

    module: str
    number: int
    into: dict[str, Tensor] = field(default_factory=dict)
    out: dict[str, Tensor] = field(default_factory=dict)
    into_grad: dict[str, Tensor] = field(default_factory=dict)
    out_grad: dict[str, Tensor] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.module}#{self.number}"


def keep(value: Any, values: dict[str, Tensor], grads: dict[str, Tensor] | None, place: str = "") -> None:
    """Keep the tensors of a value as they are, and sum up the gradients that reach those that want one."""
    for at, tensor in tensors_of(value, place).items():
        values[at] = tensor.detach().clone()
        if tensor.requires_grad and grads is not None:
            grads[at] = torch.zeros_like(tensor, requires_grad=False)
            tensor.register_hook(lambda grad, at=at: grads.update({at: grads[at] + grad.detach()}))


class SentBack:
    """What a call alone sends back to its inputs, which stay the objects that they are.

    Read off the graph: gradients of all nodes that were made since, where they go to an input.

    Args:
        given: the inputs.
        grads: by place, filled by the backward; zero where the call sends nothing.
        place: before every place.
    """

    def __init__(self, given: Any, grads: dict[str, Tensor], place: str = "") -> None:
        held = tensors_of(given, place) if torch.is_grad_enabled() else {}
        self.inputs = {at: tensor for at, tensor in held.items() if tensor.requires_grad}
        self.edges = {at: _edge(tensor) for at, tensor in self.inputs.items()}
        self.grads, self.began = grads, _next_node() if self.edges else 0
        grads.update({at: torch.zeros_like(tensor, requires_grad=False) for at, tensor in self.inputs.items()})

    def by(self, left: Any) -> None:
        """The call has ended; ``left`` is what it may have written to, and last what it gives.

        What it hands on as it is has the gradient of all its readers.
        """
        out = [*tensors_of(left[-1:]).values()]
        for at in [at for at, given in self.inputs.items() if any(given is tensor for tensor in out)]:
            self.inputs[at].register_hook(functools.partial(self._add, at))
            del self.edges[at]
        tensors = (tensor for tensor in tensors_of(left).values() if tensor.requires_grad) if self.edges else ()
        waiting, seen = [_edge(tensor)[0] for tensor in tensors], set[Any]()
        while waiting:
            node = waiting.pop()
            if node in seen or node._sequence_nr() < self.began:
                continue
            seen.add(node)
            waiting += [after for after, _ in node.next_functions if after is not None]
            places = [
                (n, at) for n, edge in enumerate(node.next_functions) for at, to in self.edges.items() if edge == to
            ]
            if places:
                node.register_hook(functools.partial(self._sent, places))
        self.inputs, self.edges = {}, {}  # else the graph would hold itself

    def _sent(self, places: Sequence[tuple[int, str]], gradients: Sequence[Tensor | None], _: Any) -> None:
        for n, at in places:
            if (grad := gradients[n]) is not None:
                self._add(at, grad)

    def _add(self, at: str, grad: Tensor) -> None:
        """As the engine takes it: of a tensor that was broadcast, the sum."""
        self.grads[at] = self.grads[at] + grad.detach().sum_to_size(self.grads[at].shape).to(self.grads[at].dtype)


def _next_node() -> int:
    """The number that a node of the graph would have now."""
    return int(_edge(torch.ones((), requires_grad=True).view(()))[0]._sequence_nr())


def _edge(tensor: Tensor) -> tuple[Any, int]:
    """The node of the graph that a tensor's gradient goes to, and the place there."""
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


@contextlib.contextmanager
def watch(module: nn.Module, own_inputs: bool = True) -> Iterator[list[Call]]:
    """Collect the calls of a module and all its parts, in the order in which they end.

    Only the body's forward is watched: what activation checkpointing repeats in the backward is no call of its own.

    Args:
        module: the whole.
        own_inputs: the gradient of an input is what this call sent back, not what all readers of the tensor did.
    """
    calls: list[Call] = []
    counts: Counter[str] = Counter()
    running: dict[str, list[tuple[Call, SentBack | None]]] = defaultdict(list)

    def before(name: str, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(name, counts[name])
        counts[name] += 1
        given = by_name(part, args, kwargs)
        keep(given, call.into, None if own_inputs else call.into_grad)
        running[name].append((call, SentBack(given, call.into_grad) if own_inputs else None))

    def after(name: str, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        call, sent = running[name].pop()
        calls.append(call)
        keep(lone(out), call.out, call.out_grad)
        if sent is not None:
            sent.by((args, kwargs, out))

    with contextlib.ExitStack() as hooks:
        for name, part in module.named_modules():
            entered, left = (functools.partial(hook, name or WHOLE) for hook in (before, after))
            hooks.callback(part.register_forward_pre_hook(entered, with_kwargs=True).remove)
            hooks.callback(part.register_forward_hook(left, with_kwargs=True).remove)
        yield calls


def call_of(module: str, number: int, into: Tensor, out: Tensor) -> Call:
    """A call that happened outside of any ``nn.Module``."""
    call = Call(module, number)
    keep(into, call.into, call.into_grad)
    keep(out, call.out, call.out_grad)
    return call


def by_name(part: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of a module's ``forward``."""
    try:
        bound = inspect.signature(part.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    named = dict(bound.arguments)
    rest = named.pop(open_ended(bound.signature), {})
    return {**named, **rest}


def open_ended(signature: inspect.Signature) -> str:
    """The name of the parameter that takes any keyword, empty where there is none."""
    return next((name for name, one in signature.parameters.items() if one.kind is one.VAR_KEYWORD), "")


def keep_calls(trace: Trace, calls: Sequence[Call]) -> None:
    """Put calls and their tensors into a trace."""
    trace.calls = tuple(call.key for call in calls)
    for call, kind in product(calls, ("into", "out", "into_grad", "out_grad")):
        for place, tensor in getattr(call, kind).items():
            trace.tensors[dotted(f"{CALLS}{call.key}.{kind}", place)] = tensor


def calls_of(trace: Trace) -> list[Call]:
    """The calls in the order in which they ended."""
    calls = {key: Call(key.rpartition("#")[0], int(key.rpartition("#")[2])) for key in trace.calls}
    for name, tensor in trace.tensors.items():
        match = CALL.fullmatch(name)
        if match and (key := f"{match['module']}#{match['number']}") in calls:
            getattr(calls[key], match["kind"])[match["place"] or ""] = tensor
    return list(calls.values())


@torch.no_grad()
def copy_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy those weights that the module has in the same name and shape."""
    own: dict[str, Tensor] = {**module.state_dict(), **dict(module.named_parameters())}
    for name, value in weights.items():
        if name in own and own[name].shape == value.shape:
            own[name].copy_(value)


def dtype_of(module: nn.Module) -> str:
    """The widest floating dtype of the parameters, in torch's words without the prefix."""
    dtypes = {value.dtype for value in module.parameters() if value.is_floating_point()}
    widest = max(dtypes, key=lambda dtype: torch.finfo(dtype).bits, default=torch.float32)
    return str(widest).removeprefix("torch.")
