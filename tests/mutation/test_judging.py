"""Edits of the ports in place of mutants: what is wrong dies by name, what is the same lives, what hangs is ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASE = "hass_fp32_k1"
LOSS, LOOP = "ports/training/loss/objective.py", "ports/training/loop.py"

JOBS = (
    ("planted", LOSS, "return total / (rows + EPSILON)", "return total / (rows + 1 + EPSILON)", ["loss"]),
    ("unseen", LOSS, "return total / (rows + EPSILON)", "return total / (rows + 1 + EPSILON)", ["targets"]),
    ("same", LOSS, "EPSILON = 1e-5", "EPSILON = 0.00001", ["loss", "gradients"]),
    ("raises", LOSS, "return total / (rows + EPSILON)", "return total / nothing", ["loss"]),
    ("no module", LOSS, "import torch\n", "import torches\n", ["loss"]),
    ("hangs", LOOP, "self.micro_batch += 1", "self.micro_batch += 0\n            while True: pass", ["loss"]),
    ("leaves", LOOP, "self.micro_batch += 1", "raise SystemExit", ["loss"]),
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Name of a job -> its record; all in forks of one process, in order."""
    keys = ("name", "file", "old", "new")
    jobs = [{**dict(zip(keys, job)), "parts": {CASE: ["run", *job[4]]}, "limit": 15} for job in JOBS]
    file = tmp_path_factory.mktemp("jobs") / "jobs.json"
    file.write_text(json.dumps(jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    script = Path(__file__).with_name("judge.py")
    done = subprocess.run(
        [sys.executable, str(script), str(file)], env=environment, capture_output=True, text=True, check=True
    )
    return {record["name"]: record for record in map(json.loads, done.stdout.splitlines())}


def test_a_planted_mutant_is_killed_by_name(outcomes):
    assert outcomes["planted"]["outcome"] == "killed"
    assert (outcomes["planted"]["check"], outcomes["planted"]["case"]) == ("loss", CASE)
    assert "loss mb0.step0.loss" in outcomes["planted"]["detail"]


def test_a_check_that_looks_elsewhere_lets_it_live(outcomes):
    assert outcomes["unseen"]["outcome"] == "survived"


def test_the_same_program_survives_after_others_died(outcomes):
    assert outcomes["same"]["outcome"] == "survived"


def test_an_exception_kills_in_its_part(outcomes):
    assert (outcomes["raises"]["check"], outcomes["raises"]["exception"]) == ("run", "NameError")
    assert (outcomes["no module"]["check"], outcomes["no module"]["exception"]) == ("import", "ModuleNotFoundError")


def test_what_does_not_end_is_ended(outcomes):
    assert (outcomes["hangs"]["outcome"], outcomes["hangs"]["check"]) == ("killed", "time limit")


def test_leaving_the_process_is_no_way_out(outcomes):
    assert (outcomes["leaves"]["outcome"], outcomes["leaves"]["check"]) == ("killed", "crash")


def test_the_parent_never_imports_the_ports(outcomes):
    assert outcomes["parent"]["imported"] == []
