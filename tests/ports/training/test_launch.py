"""Launches whose states have no names are refused before anything is written."""

from types import SimpleNamespace

import pytest
from accelerate import DistributedType

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
}


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
        launch.build_accelerator(settings(), lambda accelerator: pytest.fail("the lock was asked for"))
    assert not (tmp_path / "checkpoints").exists()
