"""``-k``: words and their logic, and nothing that Python could run."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.errors import InputError
from parity.pair import matches

NAME = "eagle3_fp32_k3_noise"
WORDS = st.sampled_from(["eagle3", "fp32", "k3", "hass", "k4", "noise", "True", "print"])
Formula = tuple[str, bool]


def joined(inner: st.SearchStrategy[Formula]) -> st.SearchStrategy[Formula]:
    """Formulas of formulas: the text and whether it fits ``NAME``."""
    return st.one_of(
        st.tuples(inner, inner).map(lambda two: (f"({two[0][0]}) and ({two[1][0]})", two[0][1] and two[1][1])),
        st.tuples(inner, inner).map(lambda two: (f"({two[0][0]}) or ({two[1][0]})", two[0][1] or two[1][1])),
        inner.map(lambda one: (f"not ({one[0]})", not one[1])),
    )


@given(st.recursive(WORDS.map(lambda word: (word, word in NAME)), joined, max_leaves=8))
def test_any_formula_means_what_it_says(formula: Formula) -> None:
    assert matches(formula[0], NAME) is formula[1]


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ("", True),
        ("   ", True),
        ("  noise\n", True),
        ("not not hass", False),
        ("hass or fp32 and bf16", False),
        ("not hass and fp32", True),
        ("__import__ or exec", False),
    ],
)
def test_expressions(expression: str, fits: bool) -> None:
    assert matches(expression, NAME) is fits


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "expression",
    [
        *("__import__('os').system('true')", "[].__class__", "fp32; noise", "fp32, noise", "fp32 + noise", "lambda: 0"),
        *("fp32 == noise", "fp32 noise", "fp32 and", "and", "(fp32", "fp32)", "()", "not ()", "fp32 (noise)"),
        *("fp32\nnoise", "'fp32'", "fp32 if noise else hass", "not " * 100_000 + "fp32"),
        "(" * 100_000 + "fp32" + ")" * 100_000,
    ],
)
def test_what_cannot_be_read_is_refused(expression: str) -> None:
    with pytest.raises(InputError, match="command line: -k: found"):
        matches(expression, NAME)


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InputError):
        assert matches(text, NAME) in (True, False)
