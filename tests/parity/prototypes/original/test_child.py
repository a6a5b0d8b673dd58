"""What is refused before a child is started, what it gets, and what is said when it fails."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.fixtures import FIXTURE
from parity.prototypes.case import Case
from parity.prototypes.original import Request, checkout, record_original, request_for
from parity.prototypes.original.child import deepspeed_environment, plain_environment

SCRIPT = "research/eagle3/train/main_train_full_gradient_calc_eagle3.py"


def changed_script(request: Request) -> Request:
    (request.prototype / SCRIPT).write_text("")
    return request


def occupied_output(request: Request) -> Request:
    request.folder.mkdir(parents=True)
    return request


def no_vocabulary(request: Request) -> Request:
    fixture = shutil.copytree(FIXTURE, request.prototype.parent / "fixture", ignore=shutil.ignore_patterns("d2t.npy"))
    return replace(request, case=replace(request.case, fixture=Path(fixture)))


def under_deepspeed(request: Request) -> Request:
    return replace(request, case=replace(request.case, dtype="bf16ds"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (changed_script, checkout.COMMIT),
        (occupied_output, "out/one: output: found a folder, expected none: a recording is never overwritten"),
        (no_vocabulary, r"d2t\.npy: file: found missing"),
        (under_deepspeed, "dtype: found bf16ds without the package deepspeed"),
    ],
)
def test_what_cannot_run_is_refused(
    spoil: Callable[[Request], Request],
    message: str,
    toy: Path,
    toy_case: Callable[..., Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    request = spoil(request_for(toy_case(), toy, tmp_path / "out"))
    with pytest.raises(InputError, match=message):
        record_original(request)


def test_a_request_has_absolute_paths(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case.directory.parent)
    near = replace(case, directory=Path(case.name), initial=Path(case.initial.name))
    request = request_for(near, Path("checkout"), Path("out"), max_optimizer_steps=3)
    assert request.case == replace(case, directory=Path.cwd() / case.name, initial=Path.cwd() / case.initial.name)
    assert (request.prototype, request.folder) == (Path.cwd() / "checkout", Path.cwd() / "out" / case.name)
    assert request.max_optimizer_steps == 3


def test_the_child_gets_fixed_threads_and_little_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    plain = plain_environment(threads=3)
    assert (plain["OMP_NUM_THREADS"], plain["MKL_NUM_THREADS"], plain["HF_HUB_OFFLINE"]) == ("3", "3", "1")
    assert "ACCELERATE_MIXED_PRECISION" not in plain
    assert deepspeed_environment()["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
