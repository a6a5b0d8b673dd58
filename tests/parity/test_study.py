"""The ledger of a pair's causes: what each explains, what is left, and a cause that explains nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from parity import Case, Cause, Options, Pair, Side, as_built, changed, instead, run_pair
from parity.study import Switch, within

RULES: Any = SimpleNamespace(divisor=lambda values: values.numel(), double=False)
"""What the port computes with, as a library's module would hold it."""


class Both(nn.Module):
    """Two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


def loss_of(module: nn.Module, batch: Tensor) -> Tensor:
    values = module(batch).square()
    return (2.0 if RULES.double else 1.0) * values.sum() / RULES.divisor(values)


def rows_loss(module: nn.Module, batch: Tensor) -> Tensor:
    values = module(batch).square()
    return 2.0 * values.sum() / len(values)


def halved(value: Tensor) -> Tensor:
    return value / 2


class Opened(Both):
    """The second weight is frozen, and trains when it is opened again."""

    def __init__(self) -> None:
        super().__init__()
        frozen(self)

    def save_pretrained(self, folder: Path) -> None:
        torch.save(self.state_dict(), folder / "model.pt")

    @classmethod
    def from_pretrained(cls, folder: Path) -> nn.Module:
        module = cls().requires_grad_(True)
        module.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        return module


def frozen(module: nn.Module) -> None:
    module.second.requires_grad_(False)  # type: ignore[union-attr]


ROWS = Cause("rows", "the sum is divided by rows", within(lambda: patch.object(RULES, "divisor", len)))
DOUBLE = Cause("double", "the loss is doubled", within(lambda: patch.object(RULES, "double", True)))
MOON = Cause("moon", "the moon is full", lambda side: side)


def slow(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4)


SLOW = Cause("slow", "the rate is lower", lambda side: replace(side, optimizer=slow))
PAIR = Pair(
    "toy",
    Side(Both, rows_loss, name="original"),
    Side(Both, loss_of, name="port"),
    (Case("one", [torch.arange(12.0).reshape(4, 3).sin()], steps=2),),
    causes=(ROWS, DOUBLE),
)


def ledger_of(pair: Pair) -> Any:
    report = run_pair(pair).report
    (ledger,) = report.ledgers
    return report, ledger, {line.tensor: line for line in ledger.lines}


def test_causes_that_are_all_of_the_difference() -> None:
    report, ledger, lines = ledger_of(PAIR)
    assert report.passed
    assert not any(line.left for line in ledger.lines)
    loss = lines["mb0.loss"]
    assert (loss.as_it_is, loss.explained) == (pytest.approx(0.75), 0.0)
    assert loss.because == {"rows": pytest.approx(0.5), "double": pytest.approx(0.5)}
    assert lines["mb0.grad.first.weight"].because == {"rows": pytest.approx(0.5), "double": pytest.approx(0.5)}
    assert not lines["first#0"].differs
    assert ledger.effects("rows")["loss"] == pytest.approx(0.5)


def test_what_no_cause_explains_fails_and_is_left() -> None:
    report, _, lines = ledger_of(replace(PAIR, causes=(ROWS,)))
    assert not report.passed
    assert lines["mb0.loss"].left
    assert lines["mb0.loss"].explained == pytest.approx(0.5)


TWICE = instead({"tests.parity.test_study:halved": lambda real, value: 2 * real(value)})
HALF = Side(Both, lambda module, batch: halved(rows_loss(module, batch)))
SAVED = Side(Opened, rows_loss)
SWITCHES: dict[str, tuple[Side, Side, Switch, str]] = {
    "instead": (Side(Both, rows_loss), HALF, TWICE, "loss"),
    "changed build": (SAVED, Side(Both, rows_loss), changed(build=frozen), "configuration"),
    "changed load": (SAVED, SAVED, changed(load=frozen), "round_trip"),
    "as built": (SAVED, SAVED, as_built("second.weight.requires_grad"), "round_trip"),
}


@pytest.mark.parametrize(("original", "port", "switch", "failed"), SWITCHES.values(), ids=SWITCHES)
def test_a_switch_makes_the_difference_and_is_undone(original: Side, port: Side, switch: Switch, failed: str) -> None:
    pair = replace(PAIR, original=original, port=port, causes=(Cause("one", "another way", switch),))
    checks = Options(checks=("configuration", "loss", "round_trip"))
    found = [run_pair(one, checks).failed for one in (replace(pair, causes=()), pair, replace(pair, causes=()))]
    assert found == [(failed,), (), (failed,)]


def test_a_cause_may_be_in_the_optimizer() -> None:
    original = Side(Both, rows_loss, slow, name="original")
    assert not run_pair(replace(PAIR, original=original)).passed
    report, ledger, _ = ledger_of(replace(PAIR, original=original, causes=(ROWS, DOUBLE, SLOW)))
    assert report.passed
    assert {line.check for line in ledger.lines if "slow" in line.because} >= {"configuration", "optimizer_step"}


@pytest.mark.parametrize(
    ("strict", "options", "fails"),
    [
        (False, Options(), False),
        (True, Options(), True),
        (True, Options(keyword="one"), False),
        (True, Options(checks=("loss",)), False),
    ],
)
def test_a_cause_that_explains_nothing(strict: bool, options: Options, fails: bool) -> None:
    report = run_pair(replace(PAIR, causes=(*PAIR.causes, MOON), strict=strict), options).report
    failed = [(row.check, row.tensor) for row in report.rows if not row.passed and row.compared]
    assert failed == ([("causes", "moon")] if fails else [])
    assert ("moon explains nothing here" in report.notes) is not fails


def test_a_side_that_raises_without_a_cause() -> None:
    def unless_doubled(module: nn.Module, batch: Tensor) -> Tensor:
        assert RULES.double, "the moon is full"
        return loss_of(module, batch)

    pair = replace(PAIR, port=Side(Both, unless_doubled, name="port"))
    report, ledger, _ = ledger_of(pair)
    assert report.passed
    (raised,) = [line for line in ledger.lines if line.check == "run"]
    assert set(raised.because) == {"double"}
    assert not raised.left


def test_a_switch_that_raises_is_a_failed_row() -> None:
    odd = Cause("odd", "no such field", lambda side: replace(side, moon="full"))
    report = run_pair(replace(PAIR, causes=(odd,))).report
    (row,) = [row for row in report.rows if not row.passed]
    assert (row.check, row.quantity) == ("causes", "raised")
    assert "moon" in row.detail


def test_terminal_page_and_json_have_the_ledger(tmp_path: Path) -> None:
    result = run_pair(replace(PAIR, causes=(ROWS, MOON)))
    said = str(result)
    assert "Causes · one:" in said
    assert "left unexplained" in said
    assert "explains nothing here" in said
    result.write_json(tmp_path / "report.json")
    (ledger,) = json.loads((tmp_path / "report.json").read_text())["ledgers"]
    assert ledger["causes"]["rows"] == "the sum is divided by rows"
    assert any(line["left"] for line in ledger["lines"])
    result.write_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert 'id="causes"' in page
    assert "the sum is divided by rows" in page
    result = run_pair(replace(PAIR, causes=()))
    result.write_html(tmp_path / "report.html")
    assert 'id="causes"' not in (tmp_path / "report.html").read_text()
