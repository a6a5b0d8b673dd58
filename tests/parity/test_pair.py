"""``-k``: words and their logic, and nothing that Python could run."""

import pytest

from parity.errors import InputError
from parity.pair import matches

NAME = "eagle3_fp32_k3_noise"


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ("", True),
        ("   ", True),
        ("  noise\n", True),
        ("not not hass", False),
        ("not (hass or k4) and (k3 and noise)", True),
        ("hass or fp32 and bf16", False),
        ("not hass and fp32", True),
        ("__import__ or exec", False),
    ],
)
def test_expressions(expression, fits):
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
def test_what_cannot_be_read_is_refused(expression):
    with pytest.raises(InputError, match="command line: -k: found"):
        matches(expression, NAME)
