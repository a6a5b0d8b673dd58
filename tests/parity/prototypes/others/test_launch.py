"""The toys go through the whole machinery: child process, stand-ins, trace, facts; and what a failure says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from parity.errors import InputError
from parity.prototypes.original import OriginalRunError
from parity.prototypes.others import OTHERS, run_other
from tests.parity.toys import seal


def test_the_toy_of_eagle(toys: dict[str, Path], cases) -> None:
    trace = run_other(toys["eagle"], OTHERS["eagle"], cases["eagle3_fp32_k3"])
    shapes = {name: tuple(value.shape) for name, value in trace.tensors.items()}
    assert shapes["step2.hidden"] == (2, 36, 64)
    assert shapes["step2.logits"] == (2, 36, 96)
    assert shapes["own.features"] == (2, 36, 192)
    assert sum(name.startswith("grad.") for name in shapes) == 13
    facts = trace.facts
    assert facts["unmodified"] == "AttributeError: 'dict' object has no attribute 'gradient_checkpointing'"
    assert facts["config_refusal"] == "ValueError: no scaling"
    assert (facts["length"], facts["step_weights"]) == (7, [1.0, 0.8, 0.8**2])
    assert facts["checkpointed"] == ""
    assert len(facts["checkpointed_lacks"]) == 11
    assert len(facts["standins"]) == 10


def test_the_toy_of_hass(toys: dict[str, Path], cases) -> None:
    trace = run_other(toys["hass"], OTHERS["hass"], cases["hass_fp32_k3"])
    assert trace.tensors["step1.logits"].shape == (2, 36, 320)
    assert sum(name.startswith("grad.") for name in trace.tensors) == 10
    parts = [trace.tensors[f"step0.{term}"] for term in ("smooth_l1", "cross_entropy", "topk")]
    weights = [trace.facts["train_config"][name] for name in ("v_w", "p_w", "topk_w")]
    total = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(total, trace.tensors["step0.loss"])
    assert trace.facts["clip_value"] == 0.5


def test_a_failure_shows_the_end_of_stderr(toys: dict[str, Path], cases, monkeypatch: pytest.MonkeyPatch) -> None:
    (toys["hass"] / OTHERS["hass"].script).write_text("raise RuntimeError('the moon is full')\n")
    seal(toys["hass"], "hass", monkeypatch)
    with pytest.raises(OriginalRunError, match=r"hass, case hass_fp32_k3, ended with exit status 1:[\s\S]*is full"):
        run_other(toys["hass"], OTHERS["hass"], cases["hass_fp32_k3"])


def test_a_run_that_takes_too_long(toys: dict[str, Path], cases) -> None:
    with pytest.raises(OriginalRunError, match=r"ran longer than 0\.01 s"):
        run_other(toys["hass"], OTHERS["hass"], cases["hass_fp32_k3"], timeout=0.01)


@pytest.mark.parametrize("name", ["hass_fp32_k3_noise", "hass_bf16_k3"])
def test_a_case_it_cannot_be_given(name: str, toys: dict[str, Path], cases) -> None:
    with pytest.raises(InputError, match="expected float32 without noise and shuffling"):
        run_other(toys["hass"], OTHERS["hass"], cases[name])
