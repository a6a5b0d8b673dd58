"""Registration with Speculators, and what a checkpoint holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ports.hass import HassDraftModel, HassSpeculatorConfig
from ports.training.saving import save_draft

ROOT = Path(__file__).resolve().parents[3]
REOPEN = """
import sys
import ports
import pytest
import torch
from speculators import SpeculatorModel
try:
    SpeculatorModel.from_pretrained(sys.argv[1])
except Exception as error:
    assert "hass" in str(error), error
else:
    raise SystemExit("it opened without our package")
import ports.hass
for folder in sys.argv[1:]:
    draft = SpeculatorModel.from_pretrained(folder)
    torch.save([step.logits.detach() for step in draft(**torch.load(f"{folder}.inputs"))], f"{folder}.logits")
"""


@pytest.fixture
def port():
    return "hass"


def test_a_new_process_opens_it_with_equal_logits_once_it_knows_our_package(lively_draft, batch_of, tmp_path):
    batch, drafts = batch_of(0, 1), {}
    names = {"features": "hidden_states", "input_ids": "input_ids", "attention_mask": "attention_mask"}
    inputs = {**{argument: batch[name] for name, argument in names.items()}, "ttt_steps": 3}
    for alignment in ("prototype", "chain"):
        draft = lively_draft(ttt_alignment=alignment)
        drafts[save_draft(draft, tmp_path / alignment)] = draft
        torch.save(inputs, tmp_path / f"{alignment}.inputs")
    command, environment = [sys.executable, "-c", REOPEN, *map(str, drafts)], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    for folder, draft in drafts.items():
        reopened = torch.load(f"{folder}.logits")
        assert len(reopened) == 3
        assert all(torch.equal(logits, step.logits) for logits, step in zip(reopened, draft(**inputs)))


def test_without_a_verifier_its_weights_are_nan(lively_draft):
    layer = lively_draft().config.transformer_layer_config
    detached = HassDraftModel(HassSpeculatorConfig(transformer_layer_config=layer))
    detached.load_verifier_weights()
    assert detached.embed_tokens.weight.isnan().all()
    assert detached.lm_head.weight.isnan().all()
    assert detached.fc.weight.isfinite().all()
