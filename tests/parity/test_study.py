"""The ledger of a pair's known differences: what each explains, what is left, and one that explains nothing."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import nn

from parity import (
    Case,
    Clip,
    Draw,
    KnownDifference,
    Options,
    Pair,
    Side,
    edit_module,
    in_context,
    keep_from_build,
    replace_functions,
    run_pair,
)
from parity.report.ledger import difference_lines, headline, summed_up

RULES = SimpleNamespace(divisor=lambda values: values.numel(), double=False)
"""What the port computes with, as a library's module would hold it."""


class Both(nn.Module):
    """Two weights."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return self.first(x) + self.second(x)


def loss_of(module, batch):
    values = module(batch).square()
    return (2.0 if RULES.double else 1.0) * values.sum() / RULES.divisor(values)


def rows_loss(module, batch):
    values = module(batch).square()
    return 2.0 * values.sum() / len(values)


def halved(value):
    return value / 2


class Opened(Both):
    """The second weight is frozen, and trains when it is opened again."""

    def __init__(self):
        super().__init__()
        frozen(self)

    def save_pretrained(self, folder):
        torch.save(self.state_dict(), folder / "model.pt")

    @classmethod
    def from_pretrained(cls, folder):
        module = cls().requires_grad_(True)
        module.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        return module


def frozen(module):
    module.second.requires_grad_(False)


ROWS = KnownDifference("rows", "the sum is divided by rows", in_context(lambda: patch.object(RULES, "divisor", len)))
DOUBLE = KnownDifference("double", "the loss is doubled", in_context(lambda: patch.object(RULES, "double", True)))
MOON = KnownDifference("moon", "the moon is full", lambda side: side)


def slow(parameters):
    return torch.optim.AdamW(parameters, lr=1e-4)


SLOW = KnownDifference("slow", "the rate is lower", lambda side: replace(side, optimizer=slow))
PAIR = Pair(
    "toy",
    Side(Both, rows_loss, name="original"),
    Side(Both, loss_of, name="port"),
    (Case("one", [torch.arange(12.0).reshape(4, 3).sin()], steps=2),),
    known_differences=(ROWS, DOUBLE),
)


def ledger_of(pair):
    report = run_pair(pair)
    (ledger,) = report.ledgers
    return report, ledger, {line.tensor: line for line in ledger.lines}


def test_causes_that_are_all_of_the_difference():
    report, ledger, lines = ledger_of(PAIR)
    assert report.passed
    assert not any(line.left for line in ledger.lines)
    loss = lines["mb0.loss"]
    assert (loss.as_it_is, loss.explained) == (pytest.approx(0.75), 0.0)
    assert loss.because == {"rows": pytest.approx(0.5), "double": pytest.approx(0.5)}
    assert lines["mb0.grad.first.weight"].because == {"rows": pytest.approx(0.5), "double": pytest.approx(0.5)}
    assert not lines["first#0"].differs
    assert ledger.effects("rows")["loss"] == pytest.approx(0.5)


def test_what_no_cause_explains_fails_and_is_left():
    report, ledger, lines = ledger_of(replace(PAIR, known_differences=(ROWS,)))
    assert not report.passed
    assert lines["mb0.loss"].left
    assert lines["mb0.loss"].explained == pytest.approx(0.5)
    failed = next(row for row in report.rows if row.tensor == "mb0.loss" and row.check == "loss")
    assert f"mb0.loss {failed.detail}" in [text for _, text in summed_up(ledger)]  # with all known differences switched


class Rules:
    """What a class computes with, which each of a kind has."""

    power = 2

    @classmethod
    def raised(cls, value):
        return value**cls.power


class Cubes(Rules):
    power = 3


@pytest.mark.parametrize("rules", [Rules, Cubes])
def test_a_classmethods_stand_in_is_given_its_arguments(rules):
    target = f"tests.parity.test_study:{rules.__name__}.raised"
    side = replace_functions({target: lambda real, value: 10 * real(value)})(Side(Both, lambda _, x: rules.raised(x)))
    assert side.loss(None, 2) == 10 * 2**rules.power
    assert rules.raised(2) == 2**rules.power


def test_what_is_put_in_a_sides_place_later_runs_in_its_contexts():
    """Once, whatever calls what: also the loss that calls the one of before, and torch's clipping."""
    half, clip = "tests.parity.test_study:halved", "torch.nn.utils:clip_grad_value_"
    clipped = []
    functions = {half: lambda real, value: 10 * real(value), clip: lambda real, *rest: clipped.append(rest[1])}
    side = replace_functions(functions)(Side(Both, lambda _, x: halved(x)))
    assert side.loss(None, 2) == 10
    assert replace(side, loss=lambda _, x: halved(halved(x))).loss(None, 2) == 50
    assert replace(side, loss=lambda module, x: 3 * side.loss(module, x)).loss(None, 2) == 30
    assert in_context(lambda: patch.object(RULES, "double", True))(side).loss(None, 2) == 10
    module = Both()
    replace(side, step=Clip("value", 0.5)).make_step(module, slow(module.parameters()))
    assert clipped == [0.5]
    assert halved(2) == 1


TWICE = replace_functions({"tests.parity.test_study:halved": lambda real, value: 2 * real(value)})
HALF = Side(Both, lambda module, batch: halved(rows_loss(module, batch)))
SAVED = Side(Opened, rows_loss)
SWITCHES = {
    "instead": (Side(Both, rows_loss), HALF, TWICE, "loss"),
    "changed build": (SAVED, Side(Both, rows_loss), edit_module(build=frozen), "configuration"),
    "changed load": (SAVED, SAVED, edit_module(load=frozen), "round_trip"),
    "as built": (SAVED, SAVED, keep_from_build("second.weight.requires_grad"), "round_trip"),
}


@pytest.mark.parametrize(("original", "port", "switch", "failed"), SWITCHES.values(), ids=SWITCHES)
def test_a_switch_makes_the_difference_and_is_undone(original, port, switch, failed):
    pair = replace(
        PAIR, original=original, port=port, known_differences=(KnownDifference("one", "another way", switch),)
    )
    checks = Options(checks=("configuration", "loss", "round_trip"))
    found = [
        run_pair(one, checks).failed
        for one in (replace(pair, known_differences=()), pair, replace(pair, known_differences=()))
    ]
    assert found == [(failed,), (), (failed,)]


def test_a_cause_may_be_in_the_optimizer():
    original = Side(Both, rows_loss, slow, name="original")
    assert not run_pair(replace(PAIR, original=original)).passed
    report, ledger, _ = ledger_of(replace(PAIR, original=original, known_differences=(ROWS, DOUBLE, SLOW)))
    assert report.passed
    assert {line.check for line in ledger.lines if "slow" in line.because} >= {"configuration", "optimizer_step"}
    known = [text for _, text in summed_up(ledger) if text.startswith("slow")]
    assert known == ["slow, configuration 2 entries without it: the rate is lower"]  # two parameters' settings
    assert ["groups.parameters", "2 entries", "0", "0", "slow"] in difference_lines(ledger)


@pytest.mark.parametrize(
    ("strict", "options", "fails"),
    [
        (False, Options(), False),
        (True, Options(), True),
        (True, Options(keyword="one"), False),
        (True, Options(checks=("loss",)), False),
    ],
)
def test_a_cause_that_explains_nothing(strict, options, fails):
    report = run_pair(replace(PAIR, known_differences=(*PAIR.known_differences, MOON), strict=strict), options)
    failed = [(row.check, row.tensor) for row in report.rows if not row.passed and row.compared]
    assert failed == ([("known_differences", "moon")] if fails else [])
    assert ("moon explains nothing here" in report.notes) is not fails


def unless_doubled(module, batch):
    if not RULES.double:
        raise RuntimeError("the moon is full")
    return loss_of(module, batch)


def no_room(module, folder):
    raise OSError("no room")


def halves(parameters):
    return torch.optim.AdamW(parameters, lr=1 / 0)


KEPT = KnownDifference("kept", "saved as torch does", lambda side: replace(side, save=None))
RAISING = {
    "loss": (Side(Both, unless_doubled), DOUBLE, "RuntimeError: the moon is full", "raises"),
    "optimizer": (Side(Both, rows_loss, halves), SLOW, "ZeroDivisionError: division by zero", "raises"),
    "save": (Side(Both, rows_loss, save=no_room), KEPT, "OSError: no room", "raises in round_trip"),
}


@pytest.mark.parametrize("meant", ["", "another text", "said"])
@pytest.mark.parametrize(("port", "mends", "raised", "said"), RAISING.values(), ids=RAISING)
def test_what_the_port_raises_as_it_is_fails_unless_a_cause_says_so(port, mends, raised, said, meant):
    """The planted fault is a port that does not run: the known difference replaces what is broken."""
    mends = replace(mends, raises=raised if meant == "said" else meant)
    known = (ROWS, mends) if mends.id == "double" else (mends,)
    original = Side(Both, rows_loss, slow if mends.id == "slow" else Side.optimizer, name="original")
    result = run_pair(replace(PAIR, original=original, port=replace(port, name="port"), known_differences=known))
    (row,) = [row for row in result.rows if row.quantity == "as it is"]
    assert row.detail.startswith(f"the port as it is {said} {raised} at tests/parity/test_study.py:")
    assert result.passed == row.passed == (meant == "said")
    end = str(result).splitlines()[-1]
    assert (end.startswith("first: run first goes wrong in port: the port as it is") and raised in end) != result.passed
    assert row.detail.endswith(f"KnownDifference(raises=...): {mends.id}") != result.passed
    (ledger,) = result.ledgers
    place = f"raises {raised} at tests/parity/test_study.py:"
    assert dict(summed_up(ledger))["raised"].startswith(f"the port as it is {place}")
    assert f"without it the port {place}" in " ".join(text for _, text in summed_up(ledger))
    assert not any("only one has it" in cell for line in difference_lines(ledger) for cell in line)


def test_one_exception_hides_none_that_comes_after_it():
    steps = KnownDifference("steps", "steps at all", lambda side: replace(side, step=Side.step))
    known = (ROWS, replace(DOUBLE, raises="the moon is full"), steps)
    port = Side(Both, unless_doubled, step=lambda module, optimizer: 1 / 0, name="port")
    (row,) = [
        row
        for row in run_pair(replace(PAIR, port=port, known_differences=known)).rows
        if row.compared and not row.passed
    ]
    assert row.detail.startswith("the port as it is raises RuntimeError: the moon is full at ")
    assert "; without steps alone ZeroDivisionError: division by zero at " in row.detail
    known = (*known[:2], replace(steps, raises="division by zero"))
    assert run_pair(replace(PAIR, port=port, known_differences=known)).passed


def test_a_port_that_raises_as_it_is_leaves_no_empty_words():
    draws = [Draw("moon", f"{__name__}:drawn", f"{__name__}:drawn", seeds=3)]
    original, port = (
        Side(Both, partial(and_drawn, loss), name=name)
        for loss, name in ((rows_loss, "original"), (unless_doubled, "port"))
    )
    pair = replace(PAIR, original=original, port=port, draws=draws, known_differences=(*PAIR.known_differences, MOON))
    (ledger,) = run_pair(pair).ledgers
    summed = summed_up(ledger)
    assert ("draws", "moon; the original's are replayed") in summed
    assert headline(ledger).startswith("the port as it is raises, 0 of ")
    assert ("", "explain nothing here: moon") in summed


def and_drawn(loss, module, batch):
    return drawn() + loss(module, batch)


def drawn():
    return torch.randint(9, (1,)).sum()


def test_a_switch_that_raises_is_a_failed_row():
    odd = KnownDifference("odd", "no such field", lambda side: replace(side, moon="full"))
    report = run_pair(replace(PAIR, known_differences=(odd,)))
    (row,) = [row for row in report.rows if not row.passed]
    assert (row.check, row.quantity) == ("known_differences", "raised")
    assert "moon" in row.detail


def test_terminal_page_and_json_have_the_ledger(tmp_path):
    result = run_pair(replace(PAIR, known_differences=(ROWS, MOON)))
    said = str(result)
    assert "Known differences · one:" in said
    assert "left unexplained" in said
    assert "explains nothing here" in said
    result.write_json(tmp_path / "report.json")
    (ledger,) = json.loads((tmp_path / "report.json").read_text())["ledgers"]
    assert ledger["known_differences"]["rows"] == "the sum is divided by rows"
    assert any(line["left"] for line in ledger["lines"])
    result.write_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert 'id="known_differences"' in page
    assert "the sum is divided by rows" in page
    result = run_pair(replace(PAIR, known_differences=()))
    result.write_html(tmp_path / "report.html")
    assert 'id="known_differences"' not in (tmp_path / "report.html").read_text()
