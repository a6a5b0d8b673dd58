import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from speculators import SpeculatorModel

from ports.eagle3.model import unroll
from ports.training.alignment import Alignment
from ports.training.attention import attention_name
from ports.training.checkpoint import MARK
from ports.training.saving import load_weights, save_draft


def logits(draft, batch):
    with torch.no_grad():
        steps = unroll(draft, batch["features"], batch["input_ids"], batch["attention_mask"], 3)
    return torch.stack([step.logits for step in steps])


@pytest.mark.parametrize("alignment", ["prototype", "chain"])
def test_speculators_reads_back_the_same_model(lively_draft, batch_of, tmp_path, alignment):
    draft, batch = lively_draft(ttt_alignment=alignment), batch_of(0, 1)
    save_draft(draft, tmp_path / "model0")
    back = SpeculatorModel.from_pretrained(tmp_path / "model0")
    own = {name: value for name, value in draft.state_dict().items() if not name.startswith("verifier_")}
    assert all(torch.equal(back.state_dict()[name], value) for name, value in own.items())
    assert type(back) is type(draft)
    back.config.transformer_layer_config._attn_implementation = attention_name(Alignment(alignment))
    assert torch.equal(logits(back, batch), logits(draft, batch))


def test_only_the_drafts_own_tensors_are_written_in_their_dtype(lively_draft, tmp_path):
    draft = lively_draft()
    save_draft(draft, tmp_path / "a")
    save_draft(draft.bfloat16(), tmp_path / "b")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert set(first) == {name for name in draft.state_dict() if not name.startswith("verifier_")}
    floats = {name for name, value in first.items() if value.is_floating_point()}
    assert {first[name].dtype for name in floats} == {torch.float32}
    assert {second[name].dtype for name in floats} == {torch.bfloat16}
    assert "ttt_" not in (tmp_path / "a" / "config.json").read_text(), "no attention of ours"


def test_a_save_replaces_an_older_one_and_survives_the_remains_of_a_crash(lively_draft, tmp_path):
    first, second = lively_draft(), lively_draft(seed=1)
    save_draft(first, tmp_path / "model0")
    (tmp_path / "model0" / "stale.txt").touch()
    shutil.copytree(tmp_path / "model0", tmp_path / f"{MARK}model0.old")
    (tmp_path / f"{MARK}model0.partial").mkdir()
    (tmp_path / f"{MARK}model0.partial" / "rubbish").touch()
    save_draft(second, tmp_path / "model0")
    names = os.listdir(tmp_path)
    assert "model0" in names
    assert not [name for name in names if name.startswith(".")]
    assert "stale.txt" not in os.listdir(tmp_path / "model0")
    weights = load_file(tmp_path / "model0" / "model.safetensors")
    assert torch.equal(weights["fc.weight"], second.fc.weight)


@pytest.fixture
def checkpoint(lively_draft, tmp_path):
    return save_draft(lively_draft(seed=3), tmp_path / "checkpoint")


CHANGES = [
    ({"fc.weight": None}, "tensors", "missing ['fc.weight']", "exactly the draft's tensors"),
    ({"fc.bias": torch.zeros(1)}, "tensors", "unexpected ['fc.bias']", "exactly the draft's tensors"),
    ({"fc.weight": torch.zeros(2, 3)}, "fc.weight", "shape (2, 3)", "shape (32, 96)"),
    (
        {"fc.weight": torch.zeros(32, 96).to(torch.float8_e4m3fn)},
        "fc.weight",
        "torch.float8_e4m3fn",
        "16 bits and more",
    ),
    ({"fc.weight": torch.zeros(32, 96).to(torch.complex64)}, "fc.weight", "torch.complex64", "16 bits and more"),
    ({"d2t": torch.zeros(23, dtype=torch.int64)}, "d2t", "another vocabulary map", "the one of the t2d and d2t files"),
    ({"t2d": torch.ones(61, dtype=torch.bool)}, "t2d", "another vocabulary map", "the one of the t2d and d2t files"),
]


@pytest.mark.parametrize(("change", "field", "found", "expected"), CHANGES)
def test_a_checkpoint_of_something_else_is_refused(lively_draft, checkpoint, refuses, change, field, found, expected):
    file = checkpoint / "model.safetensors"
    weights = {**load_file(file), **change}
    save_file({name: value for name, value in weights.items() if value is not None}, file)
    draft = lively_draft()
    before = draft.fc.weight.clone()
    with refuses(file, field, found, expected):
        load_weights(draft, checkpoint)
    assert torch.equal(draft.fc.weight, before)
