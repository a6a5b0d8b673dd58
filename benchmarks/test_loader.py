"""CPU seconds until a warm record of T 4096, h 4096 (four layers, bf16) is a batch: 0.15 at most without noise."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ports.generate.records import write_record
from ports.training.data import RecordDataset, build_loader
from ports.training.records import RecordInfo

LENGTH = HIDDEN = 4096
WIDTHS = {"hidden_state": 3 * HIDDEN, "target": HIDDEN}
BAR, ROUNDS = 0.15, 5


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("records") / "data_0.safetensors"
    floats = {name: torch.randn(LENGTH, width).bfloat16() for name, width in WIDTHS.items()}
    words: dict[str, Any] = dict.fromkeys(("verifier", "tokenizer", "loss_mask", "chat_template"), "-")
    info = RecordInfo(algorithm="eagle3", feature_layers=(3, 17, 30), row=0, **words)
    write_record(file, {"input_ids": torch.arange(LENGTH), "loss_mask": torch.ones(LENGTH), **floats}, info)
    return file


@pytest.mark.parametrize("noise", [False, True])
def test_a_record_becomes_a_batch(record: Path, noise: bool) -> None:
    loader = build_loader(RecordDataset([record], WIDTHS, LENGTH, noise=noise), 1)
    seconds = []
    for _ in range(ROUNDS):
        before = time.process_time()
        batch = next(iter(loader))
        seconds.append(time.process_time() - before)
    print(f"a record as a batch, {'with' if noise else 'without'} noise: {min(seconds):.3f} s of CPU time")
    assert batch["features"].shape == (1, LENGTH, WIDTHS["hidden_state"])
    assert noise or min(seconds) <= BAR
