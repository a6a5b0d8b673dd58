"""A run that trains nothing says so, ends with exit code 2, and leaves no checkpoint behind."""

from pathlib import Path

import pytest
import torch

from ports.errors import InputError
from ports.training.observer import Observer
from ports.training.shards import sums_of_bits
from tests.ports.conftest import TRAIN
from tests.ports.training.test_bad_records import cut, mask_out, rewrite, spoil

AT_START = {
    "no batch": ({"bs": 7}, "records: found 6, expected at least bs = 7"),
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
def test_a_run_without_a_step_is_not_started(refused, algorithm, situation):
    changes, said = AT_START[situation]
    line, cpdir = refused(algorithm, **changes)
    assert said in line
    assert not cpdir.exists()


@pytest.mark.parametrize("situation", ON_THE_WAY)
def test_a_run_without_effect_leaves_nothing_that_looks_trained(refused, fixture, algorithm, situation):
    change, changes, said = ON_THE_WAY[situation]
    for file in (fixture / f"data_{algorithm}").iterdir():
        change(file)
    line, cpdir = refused(algorithm, **changes)
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
