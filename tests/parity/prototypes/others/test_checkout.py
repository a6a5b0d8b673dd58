"""Which files a run of another original loads, and what is said of other ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity.errors import InputError
from parity.prototypes.others import OTHERS, require_other, run_other, verify_other

EACH = pytest.mark.parametrize("name", list(OTHERS))


@EACH
def test_matching_files_give_no_mismatch(name: str, toys: dict[str, Path]) -> None:
    assert verify_other(toys[name], OTHERS[name]) == []


@EACH
def test_a_tampered_file_is_named_and_never_run(name: str, toys: dict[str, Path], cases) -> None:
    other = OTHERS[name]
    script = toys[name] / other.folder / other.script
    script.write_text("raise SystemExit('ran')\n")
    (mismatch,) = verify_other(toys[name], other)
    assert mismatch.file.endswith(other.script)
    with pytest.raises(InputError, match=f"1 that differ, expected a checkout of {other.repository} at {other.commit}"):
        run_other(toys[name], other, cases["eagle3_fp32_k3"])


@EACH
def test_a_missing_file_and_a_folder_that_is_no_checkout(name: str, toys: dict[str, Path], tmp_path: Path) -> None:
    other = OTHERS[name]
    (toys[name] / other.folder / other.script).unlink()
    with pytest.raises(InputError, match=f"missing.*{other.commit}"):
        require_other(toys[name], other)
    with pytest.raises(InputError, match=other.commit):
        require_other(tmp_path / "nothing", other)


@pytest.mark.eagle
def test_the_real_eagle_is_the_measured_one(eagle_dir: Path) -> None:
    assert verify_other(eagle_dir, OTHERS["eagle"]) == []


@pytest.mark.hass
def test_the_real_hass_is_the_measured_one(hass_dir: Path) -> None:
    assert verify_other(hass_dir, OTHERS["hass"]) == []
