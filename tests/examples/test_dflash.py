"""SpecForge against Speculators: every known difference with its number, none left, faults blamed where they are."""

import math

import pytest

from parity import Options, replace_functions, run_pair
from parity.errors import InputError
from tests.existing import FAULTS, Existing, own_lines

pytestmark = pytest.mark.nightly
DFLASH = Existing("dflash.py:DFLASH")


def test_an_author_writes_120_lines_at_most():
    assert own_lines(DFLASH.file.read_text()) <= 120


def test_every_difference_is_explained_by_causes_that_are_real():
    report = DFLASH.result.report
    assert report.passed
    assert not any(line.left for ledger in report.ledgers for line in ledger.lines)
    assert {row.tensor for row in report.rows if row.check == "known_differences"} == {
        difference.id for difference in DFLASH.pair.known_differences
    }
    loss = DFLASH.line("spans", "loss", "mb0.loss")
    assert (loss.explained, loss.apart) == (0.0, True)


def test_both_cases_are_resumed_too():
    assert {row.case for row in DFLASH.result.report.rows if row.check == "resume" and row.passed} == {"spans", "end"}


KNOWN = {
    "candidates": ("candidates", "anchors", "20 / 22 candidates; only port: 17, 32", "candidates"),
    "labels": ("out", "mb0.tap.labels#0", "at (0,): expected 13, found 21", "labels"),
    "loss": ("loss", "mb0.loss", "expected 5.2492", "labels"),
    "mean": ("loss", "mb0.loss", "found 5.1049", "decayed-mean"),
    "first rate": ("configuration", "groups.0.lr", "found 0.0, expected 0.0003", "schedule"),
    "decay": ("configuration", "groups.0.weight_decay", "found 0.01, expected 0.0", "decay"),
    "clip": ("configuration", "clip.limit", "found 1.0, expected 0.5", "clip"),
    "attention": ("configuration", "attention", "['simple_flex_attention'], expected ['sdpa']", "attention"),
    **{
        f"{name} trains": ("configuration", f"requires_grad.{name}.weight", "found True, expected False", "frozen")
        for name in ("embed_tokens", "lm_head", "verifier_lm_head", "verifier_norm")
    },
}


@pytest.mark.parametrize(("quantity", "tensor", "numbers", "difference"), KNOWN.values(), ids=KNOWN)
def test_a_known_difference_has_its_number(quantity, tensor, numbers, difference):
    line = DFLASH.line("spans", quantity, tensor)
    assert numbers in line.detail
    assert not line.left
    assert difference in line.because


def test_the_other_numbers():
    """A mean over rows that weigh less than one, a sum over five rows taken for their mean."""
    assert DFLASH.ledger("spans").effects("decayed-mean")["loss"] == pytest.approx(0.12008, abs=1e-4)
    assert DFLASH.ledger("end").effects("dpace-sum")["loss"] == pytest.approx(1 - 1 / 5, abs=1e-5)
    assert DFLASH.ledger("end").effects("candidates")["candidates"] == 2


CANNOT = {
    "width": "RuntimeError: The expanded size of the tensor (6) must match the existing size (3)",
    "overhang": "IndexError: index 37 is out of bounds for dimension 0 with size 37",
}


@pytest.mark.parametrize(("difference", "words"), CANNOT.items(), ids=CANNOT)
def test_what_the_port_cannot_run_is_said(difference, words):
    """Three blocks where it makes six, and one that passes the end, as the original drew them."""
    assert DFLASH.ledger("end").effects(difference) == {"raised": math.inf}
    found = DFLASH.faulty(lambda side: side, 1, without=difference)
    assert found.failed == ("run",)
    assert found.first is not None
    assert words in found.first.detail


LOSS = replace_functions({"speculators.losses.eager:ce_loss": lambda real, *x: 1.01 * real(*x)})
PLANTED = {**FAULTS, "loss": (LOSS, "loss", "(loss)", "at (0,): expected 5.2492")}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_blamed_where_it_is(name):
    DFLASH.assert_blamed(*PLANTED[name])


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(InputError, match="--original: found no folder `specforge`, expected a checkout: git clone"):
        run_pair(DFLASH.pair, Options(original=tmp_path))


def test_a_checkout_computes_what_was_recorded(specforge_dir):
    DFLASH.assert_recorded(specforge_dir)
