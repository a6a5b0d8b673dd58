"""Records that are damaged, degenerate or no records at all, in a run."""

import math

import pytest
import torch

from ports.errors import InputError
from ports.training.observer import Observer


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
        assert logged == {mask_out: 1, one_row: 6 // bs}.get(change, logged)


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

    def gradients(self, micro_batch, objective) -> None:
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
