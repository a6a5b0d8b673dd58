import json

import pytest
import torch

from parity.fixtures import RECORDINGS
from ports.training.loss import Hits
from ports.training.metrics import PassTotals, log_entry


def hits(correct, top, rows):
    return Hits(torch.tensor(correct), torch.tensor(top), torch.tensor(rows))


@pytest.mark.parametrize("case", ["eagle3_fp32_k3", "eagle3_fp32_k5", "hass_fp32_k3"])
def test_the_entry_is_the_dict_recorded(case):
    rows = [json.loads(line) for line in (RECORDINGS / case / "trajectory.jsonl").read_text().splitlines()]
    for row in rows:
        wanted = row["logdict"]
        extra = {name: wanted[name] for name in ("train/ploss", "train/topkloss") if name in wanted}
        counted = hits(int(row["cc"]), [int(count) for count in row["topk_correct"]], int(row["ct"]))
        assert log_entry(row["lr_after"], row["loss"], counted, extra) == wanted


def test_nothing_is_logged_where_no_row_is_in_the_loss():
    assert log_entry(0.1, 0.0, hits(0, [0, 0, 0], 0)) == {}


@pytest.mark.parametrize("case", ["eagle3_fp32_k3", "eagle3_fp32_k3_ga2", "hass_fp32_k3"])
def test_the_lines_are_those_printed(case):
    meta = json.loads((RECORDINGS / case / "meta.json").read_text())
    rows = [json.loads(line) for line in (RECORDINGS / case / "trajectory.jsonl").read_text().splitlines()]
    epochs = max(row["epoch"] for row in rows) + 1
    for epoch in range(epochs):
        totals = PassTotals()
        for row in rows:
            if row["epoch"] == epoch:
                totals.add(row["loss"], hits(int(row["cc"]), [0, 0, 0], int(row["ct"])))
        printed = [line for line in meta["prints"] if line.startswith(("Epoch [", "Train Accuracy"))]
        assert totals.lines(epoch, epochs - 1) == printed[2 * epoch : 2 * epoch + 2]


def test_an_empty_pass_has_lines_too():
    assert PassTotals().lines(0, 4) == ["Epoch [1/4], Loss: nan", "Train Accuracy: 0.00%"]
