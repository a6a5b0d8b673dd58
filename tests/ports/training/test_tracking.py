import json

import pytest
import torch

from ports.training.launch import build_accelerator


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_metrics_go_to_json_lines_at_full_precision(settings):
    chosen = settings()
    accelerator = build_accelerator(chosen)
    accelerator.log({"train/loss": 1 / 3, "train/lr": 1e-17}, step=0)
    accelerator.log({"train/loss": 0.1}, step=3)
    file = chosen.cpdir / "metrics.jsonl"
    assert lines(file) == [{"step": 0, "train/loss": 1 / 3, "train/lr": 1e-17}, {"step": 3, "train/loss": 0.1}]
    accelerator.end_training()


def test_the_settings_are_written_beside_them(settings):
    chosen = settings(lr=0.25)
    build_accelerator(chosen).end_training()
    written = json.loads((chosen.cpdir / "settings.json").read_text())
    assert set(written) == {*type(chosen).model_fields, *NUMERICS}
    assert (written["lr"], written["bs"], written["ttt_alignment"]) == (0.25, 2, "prototype")


NUMERICS = {"threads": 1, "tf32": False, "matmul_precision": "highest", "deterministic": False}


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_a_run_is_in_full_float32_and_says_so(run_to_the_end, tmp_path, algorithm):
    run_to_the_end(algorithm, tmp_path / "run", epoch=0)
    (state,) = (tmp_path / "run").glob("*/*/state.json")
    assert json.loads(state.read_text())["numerics"] == NUMERICS
    assert json.loads((tmp_path / "run" / "settings.json").read_text()).items() >= NUMERICS.items()
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_new_run_starts_a_new_file(settings):
    chosen = settings()
    for value in (1.0, 2.0):
        accelerator = build_accelerator(chosen)
        accelerator.log({"train/loss": value}, step=0)
        accelerator.end_training()
    assert lines(chosen.cpdir / "metrics.jsonl") == [{"step": 0, "train/loss": 2.0}]


def test_tensorboard_gets_the_same_numbers(settings):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    chosen = settings(log_with=["tensorboard"])
    accelerator = build_accelerator(chosen)
    accelerator.log({"train/loss": 0.5}, step=2)
    accelerator.end_training()
    (file,) = [path for path in chosen.cpdir.rglob("events.out.*") if path.parent.name == "speculator-ports"]
    events = EventAccumulator(str(file)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(2, 0.5)]
