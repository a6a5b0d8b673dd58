"""Launches whose states have no names are refused before anything is written."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType

import ports.training.launch as launch
from ports.errors import InputError

REFUSED = {
    "FSDP1": ({"distributed_type": DistributedType.FSDP, "is_fsdp2": False}, "fsdp_version: found 1, expected 2"),
    **{
        f"ZeRO {stage}": (
            {"distributed_type": DistributedType.DEEPSPEED, "deepspeed_plugin": SimpleNamespace(zero_stage=stage)},
            f"zero_stage: found {stage}, expected 1 or 2",
        )
        for stage in (0, 3)
    },
    "float16 in DeepSpeed's config": (
        {
            "distributed_type": DistributedType.DEEPSPEED,
            "deepspeed_plugin": SimpleNamespace(zero_stage=2),
            "mixed_precision": "fp16",
        },
        "mixed_precision: found fp16, expected no or bf16",
    ),
}


def not_asked(accelerator):
    pytest.fail("the lock was asked for")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_there_is_refused(settings, monkeypatch, tmp_path, name):
    monkeypatch.setitem(launch.TRACKERS, name, lambda: False)
    with pytest.raises(InputError, match=rf"--log_with: found {name}, .*: pip install 'speculator-parity\[{name}\]'"):
        launch.build_accelerator(settings(log_with=[name]))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_launch(settings, monkeypatch, tmp_path, kind):
    fields, message = REFUSED[kind]
    monkeypatch.setattr(launch, "Accelerator", lambda **_: SimpleNamespace(**fields))
    with pytest.raises(InputError, match=f"accelerate launch: {message}"):
        launch.build_accelerator(settings(), not_asked)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("said", ["fp16", "FP16", "fp8", "half"])
def test_a_launchers_half_precision_is_refused(settings, monkeypatch, tmp_path, said):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", said)
    message = f"accelerate launch: mixed_precision: found {said.lower()}, expected no or bf16"
    with pytest.raises(InputError, match=message):
        launch.build_accelerator(settings(mixed_precision=None), not_asked)
    assert not (tmp_path / "checkpoints").exists()


def test_a_flag_goes_before_the_launchers_precision(settings, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    accelerator = launch.build_accelerator(settings(mixed_precision="no"))
    accelerator.end_training()
    assert accelerator.mixed_precision == "no"


def test_tf32_of_a_launchers_dynamo_is_off_again(settings, monkeypatch):
    def accelerator(**options):
        torch.backends.cuda.matmul.allow_tf32 = True  # what accelerate does with a dynamo backend on CUDA
        return Accelerator(**options)

    monkeypatch.setattr(launch, "Accelerator", accelerator)
    launch.build_accelerator(settings()).end_training()
    assert not torch.backends.cuda.matmul.allow_tf32
