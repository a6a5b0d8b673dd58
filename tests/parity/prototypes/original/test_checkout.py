from __future__ import annotations

from pathlib import Path

import pytest

from parity.errors import InputError
from parity.prototypes.original.checkout import COMMIT, require_verified, verify

SCRIPT = "research/eagle3/train/main_train_full_gradient_calc_eagle3.py"


def test_matching_files_give_no_mismatch(toy: Path) -> None:
    assert verify(toy, "eagle3") == []


def test_a_tampered_file_is_named_with_both_hashes(toy: Path) -> None:
    with (toy / SCRIPT).open("a") as opened:
        opened.write("\n")
    (mismatch,) = verify(toy, "eagle3")
    assert mismatch.file == SCRIPT
    assert mismatch.found != mismatch.expected
    assert mismatch.found in str(mismatch)
    with pytest.raises(InputError, match=mismatch.expected):
        require_verified(toy, "eagle3")


def test_a_missing_file_is_named(toy: Path) -> None:
    (toy / SCRIPT).unlink()
    with pytest.raises(InputError, match=f"{SCRIPT}.*missing.*{COMMIT}"):
        verify(toy, "eagle3")


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_a_folder_that_is_no_checkout(tmp_path: Path, algorithm: str) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: research/{algorithm}: found no such folder"):
        verify(tmp_path, algorithm)


def test_an_unknown_algorithm(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"algorithm: found 'medusa', expected one of \['eagle3', 'hass'\]"):
        verify(tmp_path, "medusa")


@pytest.mark.prototype
@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_the_real_checkout_is_the_measured_one(prototype_dir: Path, algorithm: str) -> None:
    assert verify(prototype_dir, algorithm) == []
