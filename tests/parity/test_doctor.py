"""What the doctor says."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from parity import doctor
from parity.run import SHIPPED, find_pair
from tests.parity.folders import write_checkout

PAIRS = [find_pair(name) for name in SHIPPED]


def test_missing_packages_come_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    lines = doctor.optional_parts()
    assert "deepspeed: missing, needed for the bf16ds cases with --original: pip install -e '.[deepspeed]'" in lines
    assert len([line for line in lines if ": missing, needed for " in line]) == len(doctor.OPTIONAL)


def test_present_packages_are_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    assert doctor.optional_parts()[:-1] == [f"{name}: present" for name in doctor.OPTIONAL]


@pytest.mark.parametrize(("there", "line"), [(True, "GPU: present"), (False, "GPU: none: ")])
def test_the_gpu(there: bool, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert doctor.optional_parts()[-1].startswith(line)


def test_no_checkout() -> None:
    assert doctor.checkout_state(PAIRS, None) == ["original: no checkout given (--original DIR)"]


def test_another_checkout_is_told_file_by_file(tmp_path: Path) -> None:
    files = [file for name in ("eagle3", "hass") for file in write_checkout(tmp_path, name)]
    lines = doctor.checkout_state(PAIRS, tmp_path)
    assert len(lines) == len(files) > 2
    assert all(line.startswith("original: ") and ": found " in line and ", expected " in line for line in lines)


def test_the_right_checkout(tmp_path: Path) -> None:
    pairs = [replace(pair, verify=lambda root: []) for pair in PAIRS]
    assert doctor.checkout_state(pairs, tmp_path) == [f"original: {tmp_path} holds the commit's files"]


def test_everything_is_printed() -> None:
    out = io.StringIO()
    doctor.print_environment(Console(file=out, width=200), PAIRS)
    text = out.getvalue()
    for word in ("torch", "transformers", "speculators", "threads", "matmul_precision", "GPU:", "no checkout given"):
        assert word in text
    assert torch.__version__.partition("+")[0] in text
