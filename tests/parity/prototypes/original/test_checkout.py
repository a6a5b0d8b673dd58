from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.prototypes.original.checkout import COMMIT, verify

FOLDER = "research/eagle3"
SCRIPT = f"{FOLDER}/train/main_train_full_gradient_calc_eagle3.py"


def test_a_tampered_file_is_named_with_both_hashes(toy: Path) -> None:
    assert verify(toy, "eagle3") == []
    with (toy / SCRIPT).open("a") as opened:
        opened.write("\n")
    (line,) = verify(toy, "eagle3")
    found, expected = re.fullmatch(rf"{re.escape(SCRIPT)}: found (\w{{64}}), expected (\w{{64}})", line).groups()
    assert found != expected


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / SCRIPT).unlink(), f"{SCRIPT}.*missing.*{COMMIT}"),
        (lambda root: (root / "research").rename(root / "other"), f"checkout: {FOLDER}: found no such folder"),
    ],
)
def test_what_is_missing_is_named(spoil: Callable[[Path], object], message: str, toy: Path) -> None:
    spoil(toy)
    with pytest.raises(InputError, match=message):
        verify(toy, "eagle3")


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_the_real_checkout_is_the_measured_one(prototype_dir: Path, algorithm: str) -> None:
    assert verify(prototype_dir, algorithm) == []
