"""The entry of a micro-batch, the sums of a pass, and how long it waits for data: printed and logged when asked."""

import json
import time

import pytest
import torch

from ports.training.loss import Hits
from ports.training.metrics import PassTotals, log_entry
from ports.training.observer import Observer
from ports.training.runs import finish


def hits(correct, top, rows):
    return Hits(torch.tensor(correct), torch.tensor(top), torch.tensor(rows))


def test_where_no_row_is_in_the_loss_nothing_is_logged_and_lines_are_printed():
    assert log_entry(0.1, 0.0, hits(0, [0, 0, 0], 0)) == {}
    assert PassTotals().lines(0, 4) == ["Epoch [1/4], Loss: nan", "Train Accuracy: 0.00%"]


PAUSE = 0.05


class Slow(Observer):
    """Works for a while on every batch."""

    def gradients(self, micro_batch, objective):
        time.sleep(PAUSE)


def seconds_of(cpdir):
    """What the log says of the pass, without the name of the number, and the other lines."""
    lines = [json.loads(line) for line in (cpdir / "metrics.jsonl").read_text().splitlines()]
    *others, last = lines
    assert last.pop("step") == len(others)
    return {name.removeprefix("pass/"): value for name, value in last.items()}, others


def test_a_slow_loader_is_waited_for_and_slow_training_is_not(start_run, tmp_path, capsys):
    """One pass of six samples; printed and logged when asked."""
    options = {"epoch": 0, "bs": 2, "shuffle": False}
    finish(start_run("eagle3", tmp_path / "plain", **options))
    assert "Data wait" not in capsys.readouterr().out
    finish(start_run("eagle3", tmp_path / "slow", Slow(), report_data_wait=True, **options))
    loop = start_run("eagle3", tmp_path / "waits", report_data_wait=True, **options)
    draw = loop.plan.loader.dataset.draw
    loop.plan.loader.dataset.draw = lambda features: (time.sleep(PAUSE), draw(features))[1]
    finish(loop)
    (slow, _), (waits, others) = (seconds_of(tmp_path / name) for name in ("slow", "waits"))
    assert slow["seconds"] - slow["data_wait"] >= 3 * PAUSE
    assert waits["seconds"] >= waits["data_wait"] >= max(6 * PAUSE, slow["data_wait"])
    assert waits["padding"] == pytest.approx(1 - 46 / (2 * (9 + 12 + 10)))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Data wait: ")]
    assert len(said) == 2
    assert said[1].endswith("%), padding 25.8%")
    assert others == [json.loads(line) for line in (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()]
