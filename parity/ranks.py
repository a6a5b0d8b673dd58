"""A side on several processes: forks on gloo, each with its share of a case, and one trace of what they computed.

Forks, so that closures and what is patched come along. Nothing here knows what a side is: it hands over the work.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch
import torch.distributed as dist
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes
from torch.nn.parallel import DistributedDataParallel

from parity.calls import tensors_of, with_tensors
from parity.errors import InputError, place_of
from parity.plants import Fault, Ground, Plant, at_first_forward, matrix, patched
from parity.trace import Trace, read_trace, write_trace

Found = TypeVar("Found")
Wrap = str | Callable[[nn.Module], nn.Module]
"""``ddp``, ``fsdp2`` (the whole module one group), or what makes of a module the one that is called."""

PATIENCE = timedelta(minutes=2)
"""How long a rank waits for another one."""

FSDP = "torch.distributed.fsdp"
OF_GROUND = ("place", "called", "buffers")
REPLICATED = ("init.", "after.", "final.", "mb0.grad.", "mb0.grad_norm")
"""What every rank holds in full, by the beginnings of names; the rest of a trace is of a rank's own samples."""


class RankError(RuntimeError):
    """A rank ended badly; in its words."""


def inside() -> bool:
    """Is this process one of several?"""
    return dist.is_available() and dist.is_initialized()


def is_first() -> bool:
    """Is it the one that writes files?"""
    return not inside() or dist.get_rank() == 0


def wait() -> None:
    """For all ranks."""
    if inside():
        dist.barrier()


@contextmanager
def one_folder() -> Iterator[Path]:
    """A folder for a while, the same one on all ranks."""
    with tempfile.TemporaryDirectory() as folder:
        names = [folder]
        if inside():
            dist.broadcast_object_list(names)
        yield Path(names[0])
        wait()


def seed(number: int, one: bool) -> None:
    """Seed what is drawn while training: on every rank its own, unless all are to draw alike."""
    set_seed(number + (dist.get_rank() if inside() and not one else 0))


def together(ranks: int, work: Callable[[], Found], ground: Ground | None = None) -> list[Found]:
    """What ``work`` gives on each of so many ranks; ``ground`` learns where a fault was planted in them.

    Raises:
        InputError: a rank raised it; or this process has an accelerator, whose forks have no backward.
        RankError: a rank raised anything else, or ended.
    """
    if torch.accelerator.is_available():
        found = f"{torch.accelerator.current_accelerator()}, whose forks have no backward"
        raise InputError("side", "ranks", found, "processes on the CPU: CUDA_VISIBLE_DEVICES= before the command")
    import_module(FSDP)  # once, not in every fork
    told: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        queue = get_context("fork").SimpleQueue()
        given = ranks, Path(folder), queue, work, ground
        processes = start_processes(_rank, given, ranks, join=False, start_method="fork")
        try:
            while not _ended(processes, queue, told):
                pass
        except (ProcessRaisedException, ProcessExitedException) as error:
            _drain(queue, told)
            wrong = next((one for one in told.values() if isinstance(one, Exception)), None)
            raise wrong or RankError(str(error)) from error
        left: list[Any] = [told[rank][0] for rank in range(ranks)]
        left = [read_trace(one) if isinstance(one, Path) else one for one in left]
    for name, value in next((state for _, state in told.values() if state.get("place")), told[0][1]).items():
        setattr(ground, name, value)
    return left


def _ended(processes: Any, queue: Any, told: dict[int, Any]) -> bool:
    ended = bool(processes.join(0.05))
    _drain(queue, told)
    return ended


def _drain(queue: Any, told: dict[int, Any]) -> None:
    while not queue.empty():
        rank, one = queue.get()
        told[rank] = one


def _rank(rank: int, ranks: int, folder: Path, queue: Any, work: Callable[[], Any], ground: Ground | None) -> None:
    """One of the processes, with a launcher's variables."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    try:
        meet = f"file://{folder}/meet"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=ranks, timeout=PATIENCE)
        found = work()
        if isinstance(found, Trace):
            found = write_trace(found, folder / str(rank))
        queue.put((rank, (found, {name: getattr(ground, name) for name in OF_GROUND} if ground else {})))
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:
        own = (
            error
            if isinstance(error, InputError)
            else RankError(f"rank {rank}: {type(error).__name__}: {str(error)[:200]} at {place_of(error)}")
        )
        queue.put((rank, own))
        raise


def wrapped(module: nn.Module, wrap: Wrap) -> nn.Module:
    """The module that is called, on this rank; InputError: an unknown word."""
    if not isinstance(wrap, str):
        return wrap(module)
    if wrap == "ddp":
        return DistributedDataParallel(module)
    if wrap != "fsdp2":
        raise InputError("side", "wrap", wrap, "ddp, fsdp2 or a function of the module")
    sharded: nn.Module = import_module(FSDP).fully_shard(module)
    return sharded


def samples_in(batch: Any) -> int:
    """How many a batch has: the length of its first tensor that has one."""
    return next((len(value) for value in tensors_of(batch).values() if value.dim()), 0)


def by_samples(batch: Any, rank: int, ranks: int) -> Any:
    """A rank's samples of a batch, the first ranks one more where they do not come out even.

    Every tensor whose first axis is as long as the first tensor's is cut, the others are given to all.

    Raises:
        InputError: fewer samples than ranks.
    """
    count = samples_in(batch)
    if count < ranks:
        raise InputError("case", "batches", f"{count} samples", f"at least one for each of {ranks} ranks")
    return with_tensors(batch, partial(_cut, count=count, rank=rank, ranks=ranks))


def _cut(value: Tensor, count: int, rank: int, ranks: int) -> Tensor:
    return value.tensor_split(ranks)[rank] if value.dim() and len(value) == count else value


def shares(batches: Sequence[Any], share: Callable[[Any, int, int], Any]) -> list[Any]:
    """This rank's of every batch."""
    return [share(batch, dist.get_rank(), dist.get_world_size()) for batch in batches]


def share_of_draws(drawn: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """This rank's of what another side drew for so many samples."""
    own = partial(_cut, count=count, rank=dist.get_rank(), ranks=dist.get_world_size())
    return {name: own(value) for name, value in drawn.items()}


def reduced(values: Sequence[Any], how: str) -> Any:
    """Numbers or tensors of all ranks as one: their ``sum``, or else their ``mean``."""
    total = sum(values[1:], start=values[0])
    return total if how == "sum" else total / len(values)


def join_traces(traces: Sequence[Trace], how: str) -> Trace:
    """One trace of all ranks'; what should be replicated and is not is named in ``configuration["ranks"]``.

    Args:
        traces: by rank.
        how: losses are reduced. Where by their mean, a rank's gradients of its own samples are that much larger.
    """
    first, own = traces[0], [trace.configuration["ranks"] for trace in traces]
    names = [name for name in first.tensors if all(name in trace.tensors for trace in traces)]
    apart = sorted({name for trace in traces for name in trace.tensors} - {*names})
    tensors: dict[str, Tensor] = {}
    for name in names:
        parts = [trace.tensors[name] for trace in traces]
        tensors[name] = _joined(name, traces, how, [one["samples"] for one in own])
        if name.startswith(REPLICATED) and not all(_same(part, parts[0]) for part in parts):
            apart.append(name)
    seeds = {one["seed"] for one in own}
    said = {"wanted": own[0]["wanted"], "seeds": "one" if len(seeds) == 1 else "own", "apart": apart}
    points = zip(*(trace.curve for trace in traces))
    curve = [replace(each[0], loss=reduced([point.loss for point in each], how)) for each in points]
    return replace(first, tensors=tensors, curve=curve, configuration={**first.configuration, "ranks": said})


def _joined(name: str, traces: Sequence[Trace], how: str, shared: Sequence[int]) -> Tensor:
    """One tensor of all ranks: of their samples, or the same on all."""
    parts = [trace.tensors[name] for trace in traces]
    if name.startswith(REPLICATED):
        return parts[0]
    if name.startswith("sample."):
        return _samples(name, traces)
    backward, value = "_grad." in name, name.replace("_grad.", ".", 1).replace("_grad", "")
    sides = [trace.tensors.get(value, part) for trace, part in zip(traces, parts)] if backward else parts
    if parts[0].dim() == 0 or name == "mb0.loss":
        return reduced(parts, how if parts[0].is_floating_point() else "sum")
    cut = max(shared) > 1 and [len(part) for part in sides] == [*shared]
    if not cut and all(_same(part, sides[0]) for part in sides):
        return reduced(parts, how) if backward else parts[0]
    return torch.cat(parts) / len(parts) if backward and how == "mean" else torch.cat(parts)


def _same(one: Tensor, other: Tensor) -> bool:
    """To the bit; what is no number on both is no difference between them."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _samples(name: str, traces: Sequence[Trace]) -> Tensor:
    """What a sampler drew under every seed, on all ranks; ``entries`` or how many they are."""
    stem = name.rpartition(".")[0]
    sizes = [trace.tensors[f"{stem}.sizes"] for trace in traces]
    if name.endswith(".sizes"):
        return torch.stack(sizes).sum(0)
    parts = (trace.tensors[name].split(size.tolist()) for trace, size in zip(traces, sizes))
    return torch.cat([one for seed in zip(*parts) for one in seed])


def own_part(value: Tensor) -> Tensor:
    """This rank's shard, or all of what is in no shards; in the same memory."""
    return value.to_local() if hasattr(value, "to_local") else value


@contextmanager
def _unreduced(ground: Ground, size: float) -> Iterator[None]:
    """The second rank keeps what it has computed itself as the gradient of one parameter."""
    kept: dict[str, Any] = {}
    backward = Tensor.backward

    def catch(module: nn.Module, size: float) -> str | None:
        name = matrix(module)
        if not name or dist.get_rank() != 1:
            return None
        kept["held"] = lambda: dict(module.named_parameters())[name].grad
        dict(module.named_parameters())[name].register_hook(lambda grad: kept.update(own=grad.detach().clone()))
        return name

    def run(loss: Tensor, *args: Any, **named: Any) -> None:
        backward(loss, *args, **named)
        if "own" in kept:
            found = own_part(held := kept["held"]())
            found.copy_(kept["own"] if found is held else kept["own"].chunk(dist.get_world_size())[1])

    with at_first_forward(catch)(ground, size), mock.patch.object(Tensor, "backward", run):
        yield


@contextmanager
def _alone(ground: Ground, size: float) -> Iterator[None]:
    """What is summed over the ranks is each rank's own, times their number: a mean over all becomes a mean of means."""

    def own(tensor: Tensor, op: Any = dist.ReduceOp.SUM, *_: Any, **__: Any) -> None:
        ground.place = "torch.distributed.all_reduce"
        if op == dist.ReduceOp.SUM:
            tensor.mul_(dist.get_world_size())

    with mock.patch.object(dist, "all_reduce", own):
        yield


@contextmanager
def _skipped(ground: Ground, size: float) -> Iterator[None]:
    real = shares

    def run(batches: Sequence[Any], share: Callable[[Any, int, int], Any]) -> list[Any]:
        own = real(batches, share)
        if len(own) > 1 and dist.get_rank() == 1:
            ground.place = "batch 1 of rank 1"
            del own[1]
        return own

    with mock.patch.object(sys.modules[__name__], "shares", run):
        yield


def _moved(real: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """On the second rank one weight starts 1 % off."""

    def run(module: nn.Module, wrap: Wrap) -> nn.Module:
        found, name = real(module, wrap), matrix(module)
        if name and dist.get_rank() == 1:
            own_part(dict(module.named_parameters())[name].data).mul_(1.01)
        return found

    return run


def _other_seeds(module: nn.Module, size: float) -> str:
    """One for all where each has its own, and the other way round."""
    seeds: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seeds, torch.initial_seed())
    torch.manual_seed(dist.get_rank() if len({*seeds}) == 1 else 0)
    return "torch.manual_seed"


START: Plant = patched(sys.modules[__name__], "wrapped", _moved)
FAULTS = (
    Fault("one rank's gradient not reduced", _unreduced),
    Fault("a mean of the ranks' means", _alone, otherwise="the side's loss sums nothing over the ranks"),
    Fault("a rank skips a batch", _skipped, otherwise="there is one batch"),
    Fault("ranks start from different weights", START),
    Fault("one seed for all ranks, or not", at_first_forward(_other_seeds)),
)
"""What only several processes can have, for ``Pair.faults``."""
