"""SpecForge's DFlash and DeepSpec's DSpark against Speculators' drafts, which share one core.

Every known difference has its number, none is left, and faults are blamed where they are.
"""

import ast
import json
import math
from dataclasses import replace
from functools import cache
from itertools import cycle
from pathlib import Path

import pytest
import torch

from parity import Options, replace_functions, run_pair
from parity.errors import InputError
from parity.pair import find_pair
from parity.study import switched

pytestmark = pytest.mark.nightly
PAIRS = Path(__file__).resolve().parents[2] / "examples" / "pairs"
NAMES = {"DFLASH": "specforge", "DSPARK": "deepspec"}
"""Of the pairs, and the folder of a checkout of each original."""

every_pair = pytest.mark.parametrize("name", NAMES)


def file_of(name):
    return PAIRS / f"{name.lower()}.py"


def pair_of(name):
    return find_pair(f"{file_of(name)}:{name}")


@cache
def report_of(name):
    return run_pair(pair_of(name))


def ledger(name, case):
    return next(one for one in report_of(name).ledgers if one.case == case)


def line_of(name, case, quantity, tensor):
    """Of what differs as it is."""
    lines = (line for line in ledger(name, case).lines if line.apart)
    return next(line for line in lines if (line.quantity, line.tensor) == (quantity, tensor))


def faulty(name, fault, case=0, without=""):
    """One case with every known difference switched but one, and a fault in the port."""
    pair = pair_of(name)
    port = switched(pair.port, [difference for difference in pair.known_differences if difference.id != without])
    return run_pair(replace(pair, port=fault(port), known_differences=(), cases=[pair.find_cases(None)[case]]))


def own_lines(source):
    """Neither blank nor a comment, a docstring or an import."""
    left_out = set()
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
        found = node.body[0] if documented else node if isinstance(node, (ast.Import, ast.ImportFrom)) else None
        left_out |= set(range(found.lineno, found.end_lineno + 1)) if found else set()
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for at, line in lines if at not in left_out)


def test_an_author_writes_120_lines_at_most():
    assert own_lines('"""One."""\nimport a\n\n# b\nc = (\n    1\n)\n') == 3
    assert all(own_lines(file_of(name).read_text()) <= 120 for name in NAMES)


@every_pair
def test_every_difference_is_explained_by_causes_that_are_real(name):
    report = report_of(name)
    assert report.passed
    assert not any(line.left for ledger in report.ledgers for line in ledger.lines)
    assert {row.tensor for row in report.rows if row.check == "known_differences"} == {
        difference.id for difference in pair_of(name).known_differences
    }
    loss = line_of(name, "spans", "loss", "mb0.loss")
    assert (loss.explained, loss.apart) == (0.0, True)


@pytest.mark.parametrize(("name", "cases"), [("DFLASH", {"spans", "end"}), ("DSPARK", {"spans", "full"})])
def test_both_cases_are_resumed_too(name, cases):
    """With the draws of the run: drawn anew, an anchor leads a block out of the sequence."""
    assert {row.case for row in report_of(name).rows if row.check == "resume" and row.passed} == cases


OF_BOTH = [
    ("candidates", "anchors", "20 / 22 candidates; only port: 17, 32", "candidates"),
    ("configuration", "groups.0.lr", "found 0.0, expected 0.0003", "schedule"),
    ("configuration", "groups.0.weight_decay", "found 0.01, expected 0.0", "decay"),
    ("configuration", "attention", "['simple_flex_attention'], expected ['sdpa']", "attention"),
    *(
        ("configuration", f"requires_grad.{name}.weight", "found True, expected False", "frozen")
        for name in ("embed_tokens", "lm_head", "verifier_lm_head", "verifier_norm")
    ),
]
KNOWN = [
    *((name, "spans", *known) for name in NAMES for known in OF_BOTH),
    ("DFLASH", "spans", "out", "mb0.tap.labels#0", "at (0,): expected 13, found 21", "labels"),
    ("DFLASH", "spans", "loss", "mb0.loss", "expected 5.2492", "labels"),
    ("DFLASH", "spans", "loss", "mb0.loss", "found 5.1049", "decayed-mean"),
    ("DFLASH", "spans", "configuration", "clip.limit", "found 1.0, expected 0.5", "clip"),
    ("DSPARK", "full", "candidates", "anchors", "36 / 33 candidates; only original: 33, 34, 35", "candidates"),
    ("DSPARK", "spans", "initial std", "markov_head.markov_w2.weight", "0.01926 / 0.2008", "heads"),
    ("DSPARK", "spans", "out", "mb0.tap.labels#0", "at (0,): expected 10, found 52", "labels"),
    ("DSPARK", "spans", "out", "mb0.tap.mask#0", "expected 0, found 1", "next-mask"),
    ("DSPARK", "spans", "out", "mb0.tap.l1_loss#0", "expected 1.978", "l1-not-tv"),
    ("DSPARK", "spans", "out", "mb0.tap.confidence_loss#0", "expected 0.7403014302253723, found 0.", "decayed-mean"),
]


@pytest.mark.parametrize(("name", "case", "quantity", "tensor", "numbers", "difference"), KNOWN)
def test_a_known_difference_has_its_number(name, case, quantity, tensor, numbers, difference):
    line = line_of(name, case, quantity, tensor)
    assert numbers in line.detail
    assert not line.left
    assert difference in line.because


def test_the_other_numbers():
    """A mean over rows that weigh less than one, a sum over five rows taken for their mean; a prefix that ends, and a
    term that is twice as large."""
    assert ledger("DFLASH", "spans").effects("decayed-mean")["loss"] == pytest.approx(0.12008, abs=1e-4)
    assert ledger("DFLASH", "end").effects("dpace-sum")["loss"] == pytest.approx(1 - 1 / 5, abs=1e-5)
    assert ledger("DFLASH", "end").effects("candidates")["candidates"] == 2
    effects = ledger("DSPARK", "spans").effects
    assert set(effects("prefix")) == {"curve", "grad_norm", "final"}
    assert effects("l1-not-tv")["out"] == pytest.approx(0.5, abs=1e-6)


CANNOT = {
    "width": "RuntimeError: The expanded size of the tensor (6) must match the existing size (3)",
    "overhang": "IndexError: index 37 is out of bounds for dimension 0 with size 37",
}


@pytest.mark.parametrize(("difference", "words"), CANNOT.items(), ids=CANNOT)
def test_what_the_port_cannot_run_is_said(difference, words):
    """Three blocks where it makes six, and one that passes the end, as the original drew them."""
    assert ledger("DFLASH", "end").effects(difference) == {"raised": math.inf}
    found = faulty("DFLASH", lambda side: side, 1, without=difference)
    assert found.failed == ("run",)
    assert words in found.first.detail


CORE = "speculators.models.dflash.core"
SHIFT = cycle((1, 0))  # the first call of a forward is for positions, the second for what is gathered


def later_anchors(real, **named):
    return real(**{**named, "anchor_positions": named["anchor_positions"] + 1})


FAULTS = {
    "anchor mask": (
        replace_functions({f"{CORE}:create_anchor_block_mask_mod": later_anchors}),
        "forward",
        "layers.0",
        "its input `attention_mask` already differs, at (0, 0, 0, 12): expected False, found True",
    ),
    "positions": (
        replace_functions({f"{CORE}:get_base_indices_for_anchored_blocks": lambda real, *x: real(*x) + next(SHIFT)}),
        "forward",
        "rotary_emb",
        "its input `position_ids` already differs, at (0, 37): expected 12, found 13, made outside of any module",
    ),
    "one side clips": (
        lambda side: replace(side, clip=side.clips, step=lambda _, optimizer: optimizer.step()),
        "clip",
        "(whole)",
        "8 of 8 steps are",
    ),
    "loss": (
        replace_functions({"speculators.losses.eager:ce_loss": lambda real, *x: 1.01 * real(*x)}),
        "loss",
        "(loss)",
        "at (0,): expected 5.2492",
    ),
}
"""In Speculators' core: the switch, the check, the place and the words that name it."""


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name in NAMES for fault in FAULTS if (name, fault) != ("DSPARK", "loss")]
)
def test_a_planted_fault_is_blamed_where_it_is(name, fault):
    """By its check, at its place, and nothing else fails."""
    switch, check, module, words = FAULTS[fault]
    found = faulty(name, switch)
    assert found.failed == (check,)
    assert found.first.module == module
    assert words in found.first.detail


@every_pair
def test_a_folder_that_is_no_checkout_is_refused(name, tmp_path):
    with pytest.raises(InputError, match=f"--original: found no folder `{NAMES[name]}`, expected a checkout: git clo"):
        run_pair(pair_of(name), Options(original=tmp_path))


@every_pair
def test_a_checkout_computes_what_was_recorded(name, request):
    pair = pair_of(name)
    live = pair.at(request.getfixturevalue(f"{NAMES[name]}_dir"), None)
    for case in live.find_cases(None):
        kept_case = next(one for one in pair.cases if one.name == case.name)
        with live.original.trace(live.for_original(case)) as ran, pair.original.trace(kept_case) as recorded:
            mine, kept = ran.trace, recorded.trace
        assert json.loads(json.dumps(mine.configuration)).keys() == kept.configuration.keys()
        assert mine.tensors.keys() == kept.tensors.keys()
        for key, value in mine.tensors.items():
            torch.testing.assert_close(value, kept.tensors[key], rtol=1e-4, atol=1e-6)
