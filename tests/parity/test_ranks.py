"""One process against two: the same numbers by DDP and by FSDP2, and what only several processes can get wrong."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from parity import Case, Clip, Draw, Pair, Side, run_pair
from parity.errors import InputError
from parity.pair import Options
from parity.plants import Ground
from parity.power import Battery
from parity.ranks import FAULTS, RankError, by_samples, inside, together
from parity.run import CaseRun
from parity.verdict import Sight


class Net(nn.Module):
    """Layers, a buffer and what is frozen; a table that all samples share."""

    def __init__(self):
        super().__init__()
        self.down, self.norm, self.up = nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 3)
        self.register_buffer("scale", torch.full((3,), 2.0))
        self.up.bias.requires_grad_(False)

    def forward(self, x):
        """[B, 6] -> [B, 3]."""
        return self.up(torch.tanh(self.norm(self.down(x)))) * self.scale


def uniforms(like):
    return torch.rand_like(like)


def loss(module, batch, ranks=None):
    """A mean over the rows of all ranks, given that gradients are averaged over so many afterwards."""
    rows = batch["mask"].sum()
    if inside():
        dist.all_reduce(rows)
    out = module(batch["x"] + 0.1 * uniforms(batch["x"]))
    squares = ((out - batch["y"]).square().sum(-1) * batch["mask"]).sum()
    return squares / rows * (ranks or (dist.get_world_size() if inside() else 1))


def batches():
    """Three samples each, so that shares are uneven, and so are the rows of them that count."""
    masks = torch.tensor([[1.0, 1, 1], [0, 1, 1], [1, 0, 1]])
    draw = torch.Generator().manual_seed(0)
    sizes = {"x": 6, "y": 3}
    return [{name: torch.randn(3, sizes[name], generator=draw) for name in sizes} | {"mask": mask} for mask in masks]


ONE = Side(Net, loss, step=Clip("norm", 0.1), name="one")
NOISE = Draw("noise", f"{__name__}:uniforms", f"{__name__}:uniforms", seeds=3)


def pair(**how):
    return Pair("ranks", ONE, replace(ONE, ranks=2, name="two", **how), [Case("noise", batches())], draws=[NOISE])


WRAPS = pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])


@WRAPS
def test_two_processes_compute_what_one_does(wrap):
    """Reads gradients after the all-reduce, whole tensors of shards, one trace of both shares; saves and resumes."""
    result = run_pair(pair(wrap=wrap))
    result.raise_if_failed()
    held = {row.check for row in result.rows if row.measured is not None}
    wanted = {"forward", "loss", "gradients", "clip", "optimizer_step", "curve", "round_trip", "resume", "samplers"}
    assert wanted <= held


SEEN = {
    "one rank's gradient not reduced": {"environment", "gradients"},
    "a mean of the ranks' means": {"loss", "forward"},
    "a rank skips a batch": {"clip", "curve"},
    "ranks start from different weights": {"environment", "weights"},
    "one seed for all ranks, or not": {"environment"},
}


@WRAPS
def test_what_several_processes_can_get_wrong_is_seen(wrap):
    planted = pair(wrap=wrap)
    with CaseRun(planted, planted.find_cases(None)[0]) as held:
        battery = Battery(held)
        found = {one.fault: one for one in (battery.plant(fault, Ground()) for fault in FAULTS)}
    assert found.keys() == SEEN.keys()
    for name, one in found.items():
        assert one.sight is Sight.SEEN, one
        assert one.place, one
        assert one.check in SEEN[name], one


def summed(module):
    """DDP whose gradients are summed."""
    found = DistributedDataParallel(module)

    def add(group, bucket):
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])

    found.register_comm_hook(None, add)
    return found


def test_a_function_wraps_and_losses_are_reduced_as_the_side_says():
    """The seeds are one here, and what is drawn comes from the one process."""
    how = {"wrap": summed, "reduce": "sum", "one_seed": True, "loss": lambda module, batch: loss(module, batch, 1)}
    checks = ("environment", "forward", "loss", "gradients", "curve")
    result = run_pair(pair(**how), Options(checks=checks))
    result.raise_if_failed()
    wrong = run_pair(pair(**{**how, "reduce": "mean"}), Options(checks=checks))
    assert wrong.failed[0] == "loss"


def other_norm():
    found = Net()
    found.norm.eps = 0.1
    return found


def test_what_is_wrong_on_every_rank_is_found_in_its_place():
    result = run_pair(pair(build=other_norm), Options(checks=("weights", "forward", "throughput")))
    assert (result.failed, result.first and result.first.module) == (("forward",), "norm")
    reasons = {row.check: row.detail for row in result.rows}
    assert reasons["throughput"] == "a side runs on several processes"


def broken():
    if dist.get_rank() == 1:
        raise ValueError("no such thing")


def test_a_rank_that_ends_says_which_and_where():
    with pytest.raises(RankError, match=r"rank 1: ValueError: no such thing at .*test_ranks\.py:\d+"):
        together(2, broken)


def test_refusals(monkeypatch):
    with pytest.raises(InputError, match="batches: found 1 samples, expected at least one for each of 2 ranks"):
        by_samples({"x": torch.zeros(1, 3)}, 0, 2)
    result = pair(wrap="fsdp7")
    with pytest.raises(InputError, match="wrap: found fsdp7, expected ddp, fsdp2 or a function of the module"):
        run_pair(result)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES= before the command"):
        together(2, broken)
