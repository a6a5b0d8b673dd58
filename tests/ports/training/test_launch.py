"""The accelerator of a run: what it logs, in which precision it computes, and launches that are refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType

import ports.training.launch as launch
from ports.errors import InputError
from tests.ports.conftest import TRAIN
from tests.ports.training.conftest import metrics

NUMERICS = {"threads": 1, "tf32": False, "matmul_precision": "highest", "deterministic": False}
DEEPSPEED = {"distributed_type": DistributedType.DEEPSPEED}
OF_STAGE = {stage: DEEPSPEED | {"deepspeed_plugin": SimpleNamespace(zero_stage=stage)} for stage in (0, 2, 3)}
REFUSED = {
    "FSDP1": ({"distributed_type": DistributedType.FSDP, "is_fsdp2": False}, "fsdp_version: found 1, expected 2"),
    "ZeRO 0": (OF_STAGE[0], "zero_stage: found 0, expected 1 or 2"),
    "ZeRO 3": (OF_STAGE[3], "zero_stage: found 3, expected 1 or 2"),
    "float16 in DeepSpeed's config": (
        OF_STAGE[2] | {"mixed_precision": "fp16"},
        "mixed_precision: found fp16, expected no or bf16",
    ),
    "float16 of the launcher": ("FP16", "mixed_precision: found fp16, expected no or bf16"),
    "float8 of the launcher": ("fp8", "mixed_precision: found fp8, expected no or bf16"),
}
"""What the accelerator is, or the precision that its launcher names, and what is said."""


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_launch_writes_nothing(settings, monkeypatch, tmp_path, kind):
    found, message = REFUSED[kind]
    if isinstance(found, str):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", found)
    else:
        monkeypatch.setattr(launch, "Accelerator", lambda **_: SimpleNamespace(**found))
    with pytest.raises(InputError, match=f"accelerate launch: {message}"):
        launch.build_accelerator(settings(mixed_precision=None))
    assert not (tmp_path / "checkpoints").exists()


def test_one_process_where_several_were_meant_is_refused(settings, monkeypatch, tmp_path):
    """``accelerate launch --cpu --num_processes 2`` starts one, and leaves it this."""
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"num_processes: found one process of several, expected .*: torchrun"):
        launch.build_accelerator(settings())
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_there_is_refused(settings, monkeypatch, tmp_path, name):
    monkeypatch.setitem(launch.TRACKERS, name, lambda: False)
    with pytest.raises(InputError, match=rf"--log-with: found {name}, .*: pip install 'speculator-parity\[{name}\]'"):
        launch.build_accelerator(settings(log_with=[name]))
    assert not (tmp_path / "checkpoints").exists()


def test_a_flag_goes_before_the_launchers_precision_and_its_tf32_is_off_again(settings, monkeypatch):
    def accelerator(**options):
        torch.backends.cuda.matmul.allow_tf32 = True  # what accelerate does with a dynamo backend on CUDA
        return Accelerator(**options)

    monkeypatch.setattr(launch, "Accelerator", accelerator)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    built = launch.build_accelerator(settings(mixed_precision="no"))
    assert built.mixed_precision == "no"
    assert not torch.backends.cuda.matmul.allow_tf32


def test_what_is_saved_of_a_compiled_run_bears_the_same_names(run_to_the_end, tmp_path, monkeypatch, algorithm):
    """``accelerate launch --dynamo-backend``: the module is wrapped; what it would compile runs as it is."""
    plain = run_to_the_end(algorithm, tmp_path / "plain", epoch=0)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    with torch.compiler.set_stance("force_eager"):
        compiled = run_to_the_end(algorithm, tmp_path / "compiled", epoch=0)
    assert plain.differs_from(compiled) == []


@pytest.mark.usefixtures("tf32")
def test_a_run_is_in_full_float32_and_says_so(run_to_the_end, tmp_path, algorithm):
    run_to_the_end(algorithm, tmp_path / "run", epoch=0)
    (state,) = (tmp_path / "run").glob("*/*/state.json")
    assert json.loads(state.read_text())["numerics"] == NUMERICS
    said = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert said.keys() == {*TRAIN[algorithm][1].model_fields, *NUMERICS} - {"epochs"}
    assert said.items() >= {**NUMERICS, "lr": 1e-3, "bs": 1, "ttt_alignment": "prototype"}.items()
    assert torch.get_float32_matmul_precision() == "highest"


READ = {
    "train/loss": lambda line: line.get("train/loss"),
    "val_expected_acceptance": lambda line: line.get("val_expected_acceptance"),
    "val_accuracies/2": lambda line: line.get("val_accuracies", [None] * 2)[1],
}
"""What TensorBoard calls it, and where it stands in a line of the log."""


def test_tensorboard_gets_the_same_numbers(run_to_the_end, tmp_path):
    """A line for each of a list's, such as the accuracies of validation."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_to_the_end("eagle3", tmp_path / "run", log_with=["tensorboard"], val_fraction=0.4)
    (file,) = [path for path in tmp_path.rglob("events.out.*") if path.parent.name == "speculator-ports"]
    events = EventAccumulator(str(file)).Reload()
    lines = metrics(tmp_path / "run")
    for name, read in READ.items():
        kept = [(line["step"], read(line)) for line in lines if read(line) is not None]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in kept]
        assert [value for _, value in found] == pytest.approx([value for _, value in kept], rel=1e-6)
