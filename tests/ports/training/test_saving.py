import pytest
import torch
from safetensors.torch import load_file, save_file

from ports.training.saving import load_weights, save_draft


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
