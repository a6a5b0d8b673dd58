"""``-k``: words and their logic, and nothing that Python could run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.errors import InputError
from parity.select import matches

NAME = "eagle3_fp32_k3_noise"


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ("", True),
        ("   ", True),
        ("eagle3", True),
        ("hass", False),
        ("fp32 and noise", True),
        ("fp32 and bf16", False),
        ("bf16 or noise", True),
        ("not hass", True),
        ("not not hass", False),
        ("not (fp32 and noise)", False),
        ("hass or fp32 and bf16", False),
        ("(hass or fp32) and noise", True),
        ("True", False),
        ("False or fp32", True),
        ("  noise\n", True),
    ],
)
def test_expressions(expression: str, fits: bool) -> None:
    assert matches(expression, NAME) is fits


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "[].__class__",
        "fp32; noise",
        "fp32, noise",
        "fp32 + noise",
        "lambda: 0",
        "fp32 == noise",
        "fp32 noise",
        "fp32 and",
        "and",
        "(fp32",
        "fp32)",
        "()",
        "not ()",
        "fp32 (noise)",
        "fp32\nnoise",
        "'fp32'",
        "fp32 if noise else hass",
        "not " * 100_000 + "fp32",
        "(" * 100_000 + "fp32" + ")" * 100_000,
    ],
)
def test_what_cannot_be_read_is_refused(expression: str) -> None:
    with pytest.raises(InputError, match="command line: -k: found"):
        matches(expression, NAME)


def test_a_name_of_python_is_a_word_like_any_other() -> None:
    assert matches("__import__", "calls __import__")
    assert not matches("__import__ or exec or print", NAME)


WORDS = st.sampled_from(["eagle3", "fp32", "k3", "hass", "k4", "noise"])
TREES = st.recursive(
    WORDS,
    lambda inner: st.tuples(st.sampled_from(["and", "or"]), inner, inner) | st.tuples(st.just("not"), inner),
    max_leaves=8,
)


def _written(tree: object) -> str:
    match tree:
        case str():
            return tree
        case ("not", inner):
            return f"not ({_written(inner)})"
        case (word, left, right):
            return f"({_written(left)}) {word} ({_written(right)})"
    raise AssertionError(tree)


def _truth(tree: object) -> bool:
    match tree:
        case str():
            return tree in NAME
        case ("not", inner):
            return not _truth(inner)
        case ("and", left, right):
            return _truth(left) and _truth(right)
        case (_, left, right):
            return _truth(left) or _truth(right)
    raise AssertionError(tree)


@given(TREES)
def test_any_formula_means_what_it_says(tree: object) -> None:
    assert matches(_written(tree), NAME) is _truth(tree)


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        outcome = matches(text, NAME)
    except InputError as error:
        outcome = error.field == "-k"
    assert outcome in (True, False)
