"""What holds in an interpreter that has imported nothing: shown in one of them, whose imports take ten seconds."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from parity.fixtures import FIXTURE
from ports.training.saving import save_draft
from tests.ports.conftest import data_of, words_of

ROOT = Path(__file__).resolve().parents[2]
OPENS = re.compile(r"""^python -c "(.*from_pretrained\('(checkpoints/[a-z_]+)4'\).*)"$""", re.MULTILINE)
REFUSED = """
try:
    SpeculatorModel.from_pretrained(sys.argv[1])
except Exception as error:
    assert "hass" in str(error), error
else:
    raise SystemExit("it opened without our package")
"""
REOPENED = """
import torch
for folder in sys.argv[1:]:
    draft = SpeculatorModel.from_pretrained(folder)
    torch.save([step.logits.detach() for step in draft(**torch.load(f"{folder}.inputs"))], f"{folder}.logits")
"""
OURS = "eagle3.train", "hass.train", "generate.__main__", "evaluate.command", "serving.fold"
MODULES = [*(f"ports.{name}" for name in OURS), "parity.fixtures.samples", "parity.fixtures.language"]


@pytest.fixture
def port():
    return "hass"


@pytest.fixture
def trained(tmp_path, reset_accelerator):
    """``checkpoints/model4`` and ``checkpoints/state_4``, as the front page has it."""
    for algorithm, name in {"eagle3": "model", "hass": "state_"}.items():
        reset_accelerator()
        values = {**data_of(FIXTURE, algorithm), "num_workers": 0, "epoch": 0, "max_steps": 1}
        cpdir = tmp_path / "checkpoints" / algorithm
        assert import_module(f"ports.{algorithm}.train").main(words_of({**values, "cpdir": cpdir})) == 0
        (cpdir / f"{name}0").rename(tmp_path / "checkpoints" / f"{name}4")


@pytest.mark.usefixtures("trained")
def test_drafts_open_as_the_front_page_says_and_nothing_asks_for_the_harness_s_extra(lively_draft, batch_of, tmp_path):
    """Eagle3's with Speculators alone, HASS' once it knows our package, with equal logits."""
    batch, drafts = batch_of(0, 1), {}
    names = {"features": "hidden_states", "input_ids": "input_ids", "attention_mask": "attention_mask"}
    inputs = {**{argument: batch[name] for name, argument in names.items()}, "ttt_steps": 3}
    for alignment in ("prototype", "chain"):
        draft = lively_draft(ttt_alignment=alignment)
        drafts[save_draft(draft, tmp_path / alignment)] = draft
        torch.save(inputs, tmp_path / f"{alignment}.inputs")
    eagle3, hass = (code for code, _ in OPENS.findall((ROOT / "README.md").read_text()))
    absent = "import sys; sys.modules.update(pytest=None, matplotlib=None)"
    code = "\n".join([absent, eagle3, REFUSED, hass, REOPENED, f"import {', '.join(MODULES)}"])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, drafts)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("DraftModel") == 2
    for folder, draft in drafts.items():
        reopened = torch.load(f"{folder}.logits")
        assert len(reopened) == 3
        assert all(torch.equal(logits, step.logits) for logits, step in zip(reopened, draft(**inputs)))
