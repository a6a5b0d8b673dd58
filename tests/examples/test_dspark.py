"""DeepSpec against Speculators: every known difference with its number, none left, and faults blamed where they are."""

import pytest

from parity import Options, run_pair
from parity.errors import InputError
from tests.existing import FAULTS, Existing, own_lines

pytestmark = pytest.mark.nightly
DSPARK = Existing("dspark.py:DSPARK")


def test_an_author_writes_120_lines_at_most():
    assert own_lines('"""One."""\nimport a\n\n# b\nc = (\n    1\n)\n') == 3
    assert own_lines(DSPARK.file.read_text()) <= 120


def test_the_full_case_is_resumed_too():
    """With the draws of the run: drawn anew, an anchor leads a block out of the sequence."""
    assert {row.case for row in DSPARK.result.report.rows if row.check == "resume" and row.passed} == {"spans", "full"}


def test_every_difference_is_explained_by_causes_that_are_real():
    report = DSPARK.result.report
    assert report.passed
    assert not any(line.left for ledger in report.ledgers for line in ledger.lines)
    assert {row.tensor for row in report.rows if row.check == "known_differences"} == {
        difference.id for difference in DSPARK.pair.known_differences
    }
    loss = DSPARK.line("spans", "loss", "mb0.loss")
    assert (loss.explained, loss.apart) == (0.0, True)


KNOWN = {
    "candidates": ("spans", "candidates", "anchors", "20 / 22 candidates; only port: 17, 32", "candidates"),
    "full mask": ("full", "candidates", "anchors", "36 / 33 candidates; only original: 33, 34, 35", "candidates"),
    "first rate": ("spans", "configuration", "groups.0.lr", "found 0.0, expected 0.0003", "schedule"),
    "decay": ("spans", "configuration", "groups.0.weight_decay", "found 0.01, expected 0.0", "decay"),
    "markov_w2": ("spans", "initial std", "markov_head.markov_w2.weight", "0.01926 / 0.2008", "heads"),
    "attention": ("spans", "configuration", "attention", "['simple_flex_attention'], expected ['sdpa']", "attention"),
    "labels": ("spans", "out", "mb0.tap.labels#0", "at (0,): expected 10, found 52", "labels"),
    "mask": ("spans", "out", "mb0.tap.mask#0", "expected 0, found 1", "next-mask"),
    "variation": ("spans", "out", "mb0.tap.l1_loss#0", "expected 1.978", "l1-not-tv"),
    "mean": (
        "spans",
        "out",
        "mb0.tap.confidence_loss#0",
        "expected 0.7403014302253723, found 0.5375014",
        "decayed-mean",
    ),
    **{
        f"{name} trains": (
            "spans",
            "configuration",
            f"requires_grad.{name}.weight",
            "found True, expected False",
            "frozen",
        )
        for name in ("embed_tokens", "lm_head", "verifier_lm_head", "verifier_norm")
    },
}


@pytest.mark.parametrize(("case", "quantity", "tensor", "numbers", "difference"), KNOWN.values(), ids=KNOWN)
def test_a_known_difference_has_its_number(case, quantity, tensor, numbers, difference):
    line = DSPARK.line(case, quantity, tensor)
    assert numbers in line.detail
    assert (line.apart, line.left) == (True, False)
    assert difference in line.because


def test_the_other_numbers():
    """A prefix that ends, and a term that is twice as large."""
    effects = DSPARK.ledger("spans").effects
    assert set(effects("prefix")) == {"curve", "grad_norm", "final"}
    assert effects("l1-not-tv")["out"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_blamed_where_it_is(name):
    DSPARK.assert_blamed(*FAULTS[name])


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(InputError, match="--original: found no folder `deepspec`, expected a checkout: git clone"):
        run_pair(DSPARK.pair, Options(original=tmp_path))


def test_a_checkout_computes_what_was_recorded(deepspec_dir):
    DSPARK.assert_recorded(deepspec_dir)
