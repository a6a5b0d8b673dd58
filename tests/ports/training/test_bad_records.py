"""Records that are damaged, degenerate or no records at all, in a run; runs that train nothing.

Those end with exit code 2, and leave no checkpoint behind.
"""

import math
from pathlib import Path

import pytest
import torch

from ports.errors import InputError
from ports.training.observer import Observer
from ports.training.shards import sums_of_bits
from tests.ports.conftest import TRAIN


@pytest.fixture
def data(fixture):
    return {name: fixture / f"data_{name}" for name in ("eagle3", "hass")}


def rewrite(file, change):
    record = torch.load(file, weights_only=True)
    torch.save(change(record), file)


def cut(length):
    return lambda record: {name: value[:length] for name, value in record.items()}


def mask_out(record):
    return {**record, "loss_mask": torch.zeros_like(record["loss_mask"])}


def one_row(record):
    mask = torch.zeros_like(record["loss_mask"])
    mask[0] = 1
    return {**record, "loss_mask": mask}


def spoil(file):
    file.write_bytes(file.read_bytes()[:200])


@pytest.mark.parametrize("change", [cut(1), cut(2), mask_out, one_row], ids=["T=1", "T=2", "masked", "one row"])
def test_degenerate_records_train(start_run, data, tmp_path, algorithm, change):
    """Of one or two tokens, outside the loss, or with a single row, alone and beside a good one: finite weights."""
    for file in data[algorithm].iterdir():
        if file.name != "data_0.ckpt":
            rewrite(file, change)
    for bs in (1, 3):
        draft = start_run(algorithm, tmp_path / str(bs), bs=bs, epoch=0).run().draft
        assert all(bool(value.isfinite().all()) for value in draft.state_dict().values() if value.is_floating_point())
        logged = len((tmp_path / str(bs) / "metrics.jsonl").read_text().splitlines())
        assert logged == (6 // bs if change is one_row else 1), "batches with a row in the loss"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_record_ends_the_run_by_name_or_is_skipped_said_and_counted(start_run, data, tmp_path, workers, capsys):
    spoil(data["eagle3"] / "data_2.ckpt")
    with pytest.raises(InputError, match=r"data_2.ckpt: file: found "):
        start_run("eagle3", tmp_path / "cp", num_workers=workers).run()
    rewrite(data["eagle3"] / "data_4.ckpt", lambda record: {**record, "input_ids": record["input_ids"] + 61})
    start_run("eagle3", tmp_path / "cp", bs=2, num_workers=workers, on_bad_record="skip").run()
    said = capsys.readouterr().out.splitlines()
    for bad in ("data_2.ckpt: file: found", "data_4.ckpt: input_ids: found"):
        assert len([line for line in said if line.startswith("skipped ") and bad in line]) == 2
    assert said.count("Skipped 2 bad records") == 2, "once a pass"


def test_skipping_is_leaving_out(start_run, data, tmp_path):
    """A batch with a bad record is the batch of its other records."""
    spoil(data["eagle3"] / "data_1.ckpt")
    options = {"shuffle": False, "noise": False, "epoch": 0, "on_bad_record": "skip"}
    losses = set()
    for bs in (2, 1):
        loop = start_run("eagle3", tmp_path / str(bs), bs=bs, **options)
        next(loop.optimizer_steps())
        losses.add(loop.totals.loss)
    assert len(losses) == 1


class NoNumber(Observer):
    """In the second step, of two micro-batches each: a weight that makes the loss NaN, or an infinite gradient."""

    def __init__(self, field):
        self.field = field

    def gradients(self, micro_batch, objective):
        if micro_batch == 1 and self.field == "loss":
            with torch.no_grad():
                objective.draft.layers[0].mlp.up_proj.weight[0, 0] = math.nan
        if micro_batch == 3 and self.field == "gradient norm":
            objective.draft.fc.weight.grad[0, 0] = math.inf


@pytest.mark.parametrize(("field", "found"), [("loss", "nan"), ("gradient norm", "inf")])
def test_what_is_no_number_stops_before_the_step_and_names_the_samples(
    start_run, data, tmp_path, algorithm, field, found
):
    options = {"shuffle": False, "gradient_accumulation_steps": 2, "save_steps": 1}
    loop = start_run(algorithm, tmp_path / "cp", NoNumber(field), **options)
    steps = loop.optimizer_steps()
    next(steps)
    kept = loop.objective.draft.fc.weight.clone()
    with pytest.raises(InputError, match=rf"{field}: found {found} at optimizer step 2") as stopped:
        next(steps)
    names = ", ".join(str(data[algorithm] / f"data_{index}.ckpt") for index in (2, 3))
    assert str(stopped.value).startswith(f"{names}: {field}: ")
    assert torch.equal(loop.objective.draft.fc.weight, kept)
    assert [path.name for path in (tmp_path / "cp").iterdir() if path.is_dir()] == ["step_1"]


AT_START = {
    "no batch": ({"bs": 7}, "records: found 6, expected at least batch_size = 7"),
    "accumulation over more than there are": (
        {"gradient_accumulation_steps": 16},
        "records: found 6 in 1 passes, expected at least 16, as many as an optimizer step takes",
    ),
    "the first step of a warm-up alone": (
        {"epoch": 16, "max_steps": 1},
        "optimizer steps: found 1, expected at least 2: the first of a warm-up has rate 0",
    ),
}
"""Refused before anything is written."""

ON_THE_WAY = {
    "masks of zeros": (lambda file: rewrite(file, mask_out), {}, "(0 bad records, 6 outside the loss)"),
    "one token each": (lambda file: rewrite(file, cut(1)), {"bs": 2}, "(0 bad records, 6 outside the loss)"),
    "bad records alone": (spoil, {"on_bad_record": "skip"}, "(6 bad records, 0 outside the loss)"),
    "bad ones and masked ones": (
        lambda file: spoil(file) if file.stem[-1] in "024" else rewrite(file, mask_out),
        {"on_bad_record": "skip", "gradient_accumulation_steps": 4},
        "(3 bad records, 3 outside the loss)",
    ),
    "a rate that moves no bit": (Path.touch, {"lr": 1e-30}, "weights: found not one moved in optimizer step "),
}
"""What is done to each record, the flags, and what is said in the end."""


@pytest.fixture
def refused(words, fixture, tmp_path, capsys):
    """Runs a command line that must end with exit code 2 and one line; gives the line and the directory."""

    def run(algorithm, **changes):
        cpdir = tmp_path / "cp"
        assert TRAIN[algorithm][0].main(words(algorithm, cpdir, save_steps=1, **changes)) == 2
        (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
        return line, cpdir

    return run


@pytest.mark.parametrize("situation", AT_START)
def test_a_run_without_a_step_is_not_started(refused, situation):
    changes, said = AT_START[situation]
    line, cpdir = refused("hass", **changes)
    assert said in line
    assert not cpdir.exists()


@pytest.mark.parametrize("situation", ON_THE_WAY)
def test_a_run_without_effect_leaves_nothing_that_looks_trained(refused, data, situation):
    change, changes, said = ON_THE_WAY[situation]
    for file in data["eagle3"].iterdir():
        change(file)
    line, cpdir = refused("eagle3", **changes)
    assert said in line
    assert not list(cpdir.rglob("*.safetensors"))


class Cut(Observer):
    """Takes one tensor's gradient away, as a cache of weights that were cast without one does."""

    def gradients(self, micro_batch, objective):
        objective.draft.get_parameter("layers.0.mlp.up_proj.weight").grad = None


def test_a_tensor_that_no_gradient_reaches_is_named(start_run, tmp_path):
    with pytest.raises(InputError, match=r"layers.0.mlp.up_proj.weight: found no gradient, as in 1 tensors"):
        start_run("hass", tmp_path / "cp", Cut()).run()
    assert not list((tmp_path / "cp").rglob("*.safetensors"))


def test_records_without_a_row_are_said_and_counted_where_others_train(start_run, fixture, tmp_path, capsys):
    rewrite(fixture / "data_eagle3" / "data_2.ckpt", mask_out)
    rewrite(fixture / "data_eagle3" / "data_4.ckpt", cut(1))
    start_run("eagle3", tmp_path / "cp", bs=2).run()
    said = capsys.readouterr().out.splitlines()
    for name, visits in {"data_2.ckpt": 2, "data_4.ckpt": 2, "data_5.ckpt": 0}.items():
        assert said.count(f"no row in the loss: {fixture / 'data_eagle3' / name}") == visits
    assert said.count("Without a row in the loss: 2 records") == 2, "once a pass"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_any_bit_is_a_move(dtype):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)).to(dtype)
    module[1].requires_grad_(False)
    before = sums_of_bits(module)
    with torch.no_grad():
        module[1].weight += 1
        assert torch.equal(before, sums_of_bits(module))
        module[0].weight[1, 2] = torch.nextafter(module[0].weight[1, 2], torch.tensor(9, dtype=dtype))
    assert not torch.equal(before, sums_of_bits(module))
