"""What passes through a module and its parts during a forward, and the gradients that come back.

Values are found wherever they are: tensors, tuples, dicts, dataclasses, model outputs, block masks. A module that is
called several times has several calls, numbered from 0. Inputs reach a module through a view of their own, so that
their gradient is what this call alone sent back.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
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


def tensors_of(value: Any) -> dict[str, Tensor]:
    """All tensors by their place: ``0``, ``0.1``, ``logits``; a lone tensor's place is the empty string.

    A ``BlockMask`` is its dense form, bool [B, H, T, S], true where a position is seen.
    """
    return {".".join(place): tensor for place, tensor in _walk(value, ())}


def _walk(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    for path, leaf in _leaves(value):
        here = (*place, *path)
        if isinstance(leaf, Tensor):
            yield here, leaf
        elif (inside := _opened(leaf)) is not None:
            yield from _walk(inside, here)


def _leaves(value: Any) -> list[tuple[tuple[str, ...], Any]]:
    """What torch's pytrees find, with the words of the way there; types registered without keys have numbers."""
    try:
        found = pytree.tree_flatten_with_path(value, is_leaf=_is_block_mask)[0]
    except ValueError:
        return [((str(i),), leaf) for i, leaf in enumerate(pytree.tree_leaves(value, is_leaf=_is_block_mask))]
    return [(tuple(_word(key) for key in path), leaf) for path, leaf in found]


def _word(key: Any) -> str:
    return str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)))


def _opened(leaf: Any) -> Any:
    """A structure that torch has no pytree for as one that it has; None for anything else."""
    if _is_block_mask(leaf):
        return dense_mask(leaf)
    if isinstance(leaf, Mapping):
        return dict(leaf)
    if isinstance(leaf, (tuple, list)):
        return list(leaf)
    if is_dataclass(leaf) and not isinstance(leaf, type):
        return {one.name: getattr(leaf, one.name) for one in fields(leaf)}
    return None


def _is_block_mask(value: Any) -> bool:
    flex = sys.modules.get("torch.nn.attention.flex_attention")
    return flex is not None and isinstance(value, flex.BlockMask)


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
    if isinstance(value, Tensor):
        return value.detach().clone()
    try:
        return copy.deepcopy(value, _detached(value))
    except Exception:  # locks, handles of other libraries
        return value


def _detached(value: Any) -> dict[int, Any]:
    """For ``deepcopy``: what stands for the tensors inside an object, a key/value cache for example; modules stay."""
    memo: dict[int, Any] = {}
    seen, left = {id(None)}, [value]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            memo[id(one)] = one.detach().clone()
        elif isinstance(one, nn.Module):
            memo[id(one)] = one
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


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and of the buffers that are saved."""
    parameters = dict(module.named_parameters())
    saved = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    return {name: value.detach().clone() for name, value in {**saved, **parameters}.items()}


@dataclass(eq=False)
class Call:
    """One call of one module: values as they were then, gradients once a backward has run.

    ``into`` and ``out`` are keyed by argument or place and hold every tensor: states, ids, positions, masks of any
    form. ``arguments`` are the objects the module was called with, kept only when asked for.
    """

    module: str
    number: int
    into: dict[str, Tensor] = field(default_factory=dict)
    out: dict[str, Tensor] = field(default_factory=dict)
    into_grad: dict[str, Tensor] = field(default_factory=dict)
    out_grad: dict[str, Tensor] = field(default_factory=dict)
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    @property
    def key(self) -> str:
        return f"{self.module}#{self.number}"


@contextlib.contextmanager
def watch(module: nn.Module, arguments: bool = False, own_inputs: bool = True) -> Iterator[list[Call]]:
    """Collect the calls of a module and all its parts, in the order in which they end.

    Only the body's forward is watched: what activation checkpointing repeats in the backward is no call of its own.

    Args:
        module: the whole.
        arguments: keep copies of the arguments too.
        own_inputs: the gradient of an input is what this call sent back, not what all readers of the tensor did.
    """
    calls: list[Call] = []
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as hooks:
        for name, part in module.named_modules():
            before, after = _hooks(name or WHOLE, calls, counts, arguments, own_inputs)
            hooks.callback(part.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(part.register_forward_hook(after).remove)
        yield calls


def _hooks(name: str, calls: list[Call], counts: Counter[str], keep: bool, own: bool) -> tuple[Callable[..., Any], ...]:
    running: list[Call] = []

    def before(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        call = Call(name, counts[name], arguments=snapshot((args, kwargs)) if keep else None)
        counts[name] += 1
        running.append(call)
        args, kwargs = with_tensors((args, kwargs), own_view) if own else (args, kwargs)
        for place, tensor in tensors_of(by_name(part, args, kwargs)).items():
            call.into[place] = tensor.detach().clone()
            catch(tensor, call.into_grad, place)
        return args, kwargs

    def after(part: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        call = running.pop()
        for place, tensor in tensors_of(lone(out)).items():
            call.out[place] = tensor.detach().clone()
            catch(tensor, call.out_grad, place)
        calls.append(call)

    return before, after


def call_of(module: str, number: int, into: Tensor, out: Tensor) -> Call:
    """A call that happened outside of any ``nn.Module``."""
    call = Call(module, number, {"": into.detach().clone()}, {"": out.detach().clone()})
    catch(into, call.into_grad, "")
    catch(out, call.out_grad, "")
    return call


def own_view(tensor: Tensor) -> Tensor:
    """A view whose gradient is what its readers alone send back."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor


def by_name(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of a function or of a module's ``forward``."""
    try:
        bound = inspect.signature(getattr(function, "forward", function)).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    named = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
    return named


def catch(tensor: Tensor, grads: dict[str, Tensor], place: str) -> None:
    """Sum up the gradient that reaches a tensor; zeros where none does, nothing for tensors that want none."""
    if not tensor.requires_grad:
        return
    grads[place] = torch.zeros_like(tensor, requires_grad=False)

    def caught(grad: Tensor) -> None:
        grads[place] = grads[place] + grad.detach()

    tensor.register_hook(caught)


def keep_call(trace: Trace, call: Call) -> None:
    """Put a call's tensors into a trace."""
    for kind in ("into", "out", "into_grad", "out_grad"):
        for place, tensor in getattr(call, kind).items():
            trace.tensors[".".join(filter(None, (f"{CALLS}{call.key}.{kind}", place)))] = tensor


def calls_of(trace: Trace) -> list[Call]:
    """The calls in the order in which they ended."""
    calls = {key: Call(key.rpartition("#")[0], int(key.rpartition("#")[2])) for key in trace.calls}
    for name, tensor in trace.tensors.items():
        match = CALL.fullmatch(name)
        if match and (key := f"{match['module']}#{match['number']}") in calls:
            getattr(calls[key], match["kind"])[match["place"] or ""] = tensor
    return list(calls.values())
