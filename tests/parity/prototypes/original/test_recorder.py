from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from parity.prototypes.original.recorder import Recorder, write_recording


def feed(recorder: Recorder, model: torch.nn.Module, micro_batch: int, synced: bool) -> None:
    """One made-up micro-batch with two forward steps."""
    recorder.begin(0, {"input_ids": torch.arange(3), "attention_mask": torch.ones(3)})
    for step in (1.0, 2.0):
        recorder.forward(torch.full((3,), step), torch.full((3,), -step))
        values = {"kldiv_loss": torch.tensor(step), "logits": torch.full((2,), step), "target_p": torch.zeros(2)}
        extra = {"ploss": torch.tensor(5.0), "topk_loss": torch.tensor(6.0)} if recorder.algorithm == "hass" else {}
        recorder.losses({**values, **extra})
    recorder.backward(torch.tensor(3.0), 0.7)
    gradients = {"weight": torch.ones(1, 1), "bias": None}
    recorder.clip({"kind": "norm" if recorder.algorithm == "eagle3" else "value", "max": 1.0}, gradients, synced)
    recorder.clip_returned(torch.tensor(0.5))
    recorder.before_step(1e-3, synced)
    recorder.after_step(model, synced)
    recorder.after_scheduler(5e-4)
    names: dict[str, Any] = {"loss": torch.tensor(3.0), "cc": 1, "ct": 2, "topkacc": [torch.tensor([1.0])] * 3}
    recorder.end({**names, "logdict": {"train/lr": 5e-4}}, synced)


@pytest.mark.parametrize(("algorithm", "dtype"), [("eagle3", torch.float32), ("hass", torch.float64)])
def test_files_have_the_format_of_the_recordings(tmp_path: Path, algorithm: str, dtype: torch.dtype) -> None:
    recorder, model = Recorder(algorithm), torch.nn.Linear(1, 1)
    for number, synced in enumerate([False, True, False, True]):
        feed(recorder, model, number, synced)
    recorder.uniforms = [torch.zeros(1), torch.ones(1)]
    write_recording(tmp_path / "case", recorder, {"weight": torch.ones(1)}, {"case": "case"})
    first = load_file(tmp_path / "case" / "first_step.safetensors")
    assert {name.split(".")[0] for name in first} == {"mb0", "mb1", "after"}
    assert [name for name in first if ".grad." in name] == ["mb1.grad.weight"]
    assert first["mb0.step0.hidden_in"].tolist() == [1.0] * 3
    assert first["mb1.step1.predict"].tolist() == [-2.0] * 3
    assert first["mb0.step1.kldiv_loss"].shape == first["mb0.loss"].shape == (1,)
    assert first["mb0.loss"].dtype == first["mb0.grad_norm"].dtype == dtype
    assert set(load_file(tmp_path / "case" / "noise_uniforms.safetensors")) == {"u0000", "u0001"}
    rows = [json.loads(line) for line in (tmp_path / "case" / "trajectory.jsonl").read_text().splitlines()]
    assert [row["mb"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["kldiv_steps"] == [1.0, 2.0]
    assert (rows[0]["lr_used"], rows[0]["lr_after"], rows[0]["topk_correct"]) == (1e-3, 5e-4, [1.0] * 3)
    assert ("ploss_steps" in rows[0]) == (algorithm == "hass")
    assert recorder.without_grad == ["bias"]
    assert (recorder.optimizer_steps, recorder.first_micro_batches) == (2, [0, 1])


def test_a_batch_without_loss_rows_has_no_log_entry() -> None:
    recorder = Recorder("eagle3")
    recorder.begin(0, {})
    recorder.clip({"kind": "norm", "max": 1.0}, {}, True)
    recorder.clip_returned(None)
    recorder.end({"loss": torch.tensor(0.0), "cc": 0, "ct": 0.0, "topkacc": [], "logdict": {"stale": 1}}, True)
    assert recorder.rows[0]["logdict"] is None
    assert recorder.rows[0]["clip"]["returned"] is None
