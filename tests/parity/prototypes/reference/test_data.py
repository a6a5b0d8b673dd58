"""From a sample file to a batch, entry by entry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.errors import InputError
from parity.prototypes.case import Case
from parity.prototypes.reference.data import batches_of_pass, load_sample, make_batch


@pytest.fixture
def file(tmp_path: Path) -> Path:
    sample = {
        "input_ids": torch.tensor([5, 6, 7, 8]),
        "loss_mask": torch.tensor([0, 1, 1, 1]),
        "hidden_state": torch.arange(12.0).reshape(4, 3).bfloat16(),
        "target": torch.arange(8.0).reshape(4, 2).bfloat16(),
    }
    torch.save(sample, tmp_path / "data_0.ckpt")
    return tmp_path / "data_0.ckpt"


def test_ids_and_targets_move_and_the_mask_does_not(file: Path) -> None:
    sample = load_sample(file, None)
    assert sample["input_ids"].tolist() == [6, 7, 8, 0]
    assert sample["target"].tolist() == [[2, 3], [4, 5], [6, 7], [0, 0]]
    assert sample["loss_mask"].tolist() == [0, 1, 1, 0]
    assert sample["attention_mask"].tolist() == [1, 1, 1, 1]
    assert torch.equal(sample["hidden_states"], torch.arange(12.0).reshape(4, 3).bfloat16())
    noisy = load_sample(file, torch.full((1, 4, 3), 0.75))["hidden_states"]
    expected = sample["hidden_states"].float() + 0.25 * 0.2 * 512 / 4
    torch.testing.assert_close(noisy.float(), expected, rtol=0.01, atol=0)


def test_without_a_target_the_features_are_it_and_noise_leaves_them_alone(tmp_path: Path) -> None:
    sample = {"input_ids": torch.arange(3), "loss_mask": torch.ones(3), "hidden_state": torch.ones(3, 2)}
    torch.save(sample, tmp_path / "x.ckpt")
    found = load_sample(tmp_path / "x.ckpt", torch.ones(1, 3, 2))
    assert found["target"].tolist() == [[1, 1], [1, 1], [0, 0]]
    assert found["hidden_states"].max() > 1


@pytest.mark.parametrize("shape", [(1, 4, 1), (1, 1, 3), (4, 3), (1, 5, 3)])
def test_noise_of_another_shape_is_refused(shape: tuple[int, ...], file: Path) -> None:
    with pytest.raises(InputError, match=r"data_0\.ckpt: noise: found draws of shape"):
        load_sample(file, torch.zeros(shape))


def test_a_batch_is_padded_on_the_right_in_float32(file: Path, tmp_path: Path) -> None:
    short = {"input_ids": torch.tensor([1, 2]), "loss_mask": torch.tensor([1, 1])}
    torch.save({**short, "hidden_state": torch.ones(2, 3), "target": torch.ones(2, 2)}, tmp_path / "y.ckpt")
    batch = make_batch([load_sample(file, None), load_sample(tmp_path / "y.ckpt", None)])
    assert batch["input_ids"].tolist() == [[6, 7, 8, 0], [2, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["loss_mask"].tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["hidden_states"].dtype == batch["target"].dtype == torch.float32
    assert batch["hidden_states"][1, 2:].abs().max() == 0


def test_missing_samples_and_draws_are_named(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["eagle3_fp32_k3_noise"]
    assert case.uniforms is not None
    stored = load_file(case.uniforms)
    save_file({name: stored[name] for name in sorted(stored)[:3]}, tmp_path / "noise_uniforms.safetensors")
    few = batches_of_pass(replace(case, directory=tmp_path), 0)
    next(few)
    with pytest.raises(InputError, match="noise: found 3 draws, expected one for every sample visited"):
        next(few)
    with pytest.raises(InputError, match=r"data_\d+\.ckpt: file"):
        next(batches_of_pass(replace(case, tmpdir=tmp_path), 0))
