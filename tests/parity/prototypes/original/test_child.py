"""What is refused before a child is started, what it gets, and what is said when it fails."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.fixtures import FIXTURE
from parity.prototypes.original.checkout import COMMIT
from parity.prototypes.original.child import deepspeed_environment, plain_environment, record_original

SCRIPT = "research/eagle3/train/main_train_full_gradient_calc_eagle3.py"


def changed_script(case, checkout):
    (checkout / SCRIPT).write_text("")
    return case


def occupied_output(case, checkout):
    (checkout.parent / "out" / case.name).mkdir(parents=True)
    return case


def no_vocabulary(case, checkout):
    fixture = shutil.copytree(FIXTURE, checkout.parent / "fixture", ignore=shutil.ignore_patterns("d2t.npy"))
    return replace(case, fixture=Path(fixture))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (changed_script, COMMIT),
        (occupied_output, "out/one: output: found a folder, expected none: a recording is never overwritten"),
        (no_vocabulary, r"d2t\.npy: file: found missing"),
        (lambda case, _: replace(case, dtype="bf16ds"), "dtype: found bf16ds without the package deepspeed"),
    ],
)
def test_what_cannot_run_is_refused(
    spoil,
    message,
    toy,
    toy_case,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    case = spoil(toy_case(), toy)
    with pytest.raises(InputError, match=message):
        record_original(case, toy, tmp_path / "out")


def test_the_child_gets_fixed_threads_and_little_else(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    plain = plain_environment(threads=3)
    assert (plain["OMP_NUM_THREADS"], plain["MKL_NUM_THREADS"], plain["HF_HUB_OFFLINE"]) == ("3", "3", "1")
    assert "ACCELERATE_MIXED_PRECISION" not in plain
    assert deepspeed_environment()["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
