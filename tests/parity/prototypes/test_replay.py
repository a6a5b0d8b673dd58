"""Recorded order and noise, handed out again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from parity.errors import InputError
from parity.prototypes.case import Case
from parity.prototypes.replay import ReplayDraw, ReplaySampler, samples_per_pass


def test_every_iteration_is_the_next_pass() -> None:
    sampler = ReplaySampler([4, 0, 2, 1, 3, 0, 9], per_pass=3)
    assert len(sampler) == 3
    assert [list(sampler) for _ in range(4)] == [[4, 0, 2], [1, 3, 0], [9], []]


@pytest.fixture
def draws(tmp_path: Path) -> Path:
    file = tmp_path / "noise_uniforms.safetensors"
    half = torch.full((1, 2, 3), 0.5, dtype=torch.float64)  # wider numbers come first in the file
    save_file({"u00001": half, "u00000": torch.zeros(1, 4, 3)}, file)
    return file


def test_draws_come_in_loading_order(draws: Path) -> None:
    draw = ReplayDraw(draws)
    assert torch.equal(draw(torch.ones(1, 4, 3)), torch.zeros(1, 4, 3))
    assert draw(torch.ones(1, 2, 3)).tolist() == [[[0.5] * 3] * 2]


def test_one_draw_too_few(draws: Path) -> None:
    draw = ReplayDraw(draws)
    draw(torch.ones(1, 4, 3)), draw(torch.ones(1, 2, 3))
    with pytest.raises(InputError, match="noise: found 2 draws, expected one more"):
        draw(torch.ones(1, 1, 3))


def test_a_draw_for_another_sample(draws: Path) -> None:
    with pytest.raises(InputError, match=r"draw 0: found shape \(1, 4, 3\), expected shape \(1, 2, 3\)"):
        ReplayDraw(draws)(torch.ones(1, 2, 3))


def test_incomplete_batches_are_not_visited(cases: dict[str, Case]) -> None:
    assert samples_per_pass(cases["eagle3_fp32_k3"]) == 16
    assert samples_per_pass(cases["eagle3_fp32_k3_bs1"]) == 17
