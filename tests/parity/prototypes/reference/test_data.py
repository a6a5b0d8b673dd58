"""From a sample file to a batch, entry by entry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.errors import InputError
from parity.prototypes.case import Case
from parity.prototypes.reference.data import batches_of, load_sample


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
    noisy = load_sample(file, lambda like: torch.full_like(like, 0.75))["hidden_states"]
    expected = sample["hidden_states"].float() + 0.25 * 0.2 * 512 / 4
    torch.testing.assert_close(noisy.float(), expected, rtol=0.01, atol=0)


def test_missing_samples_and_draws_are_named(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["eagle3_fp32_k3_noise"]
    assert case.uniforms is not None
    stored = load_file(case.uniforms)
    save_file({name: stored[name] for name in sorted(stored)[:3]}, tmp_path / "noise_uniforms.safetensors")
    few = batches_of(replace(case, directory=tmp_path))
    next(few)
    with pytest.raises(InputError, match="noise: found 3 draws, expected one more"):
        next(few)
    with pytest.raises(InputError, match=r"data_\d+\.ckpt: file"):
        next(batches_of(replace(case, tmpdir=tmp_path)))
