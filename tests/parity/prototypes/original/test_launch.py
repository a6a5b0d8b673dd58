"""The toy prototype goes through the whole machinery: child process, stand-ins, recorder, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from parity.errors import InputError
from parity.prototypes.original import OriginalRequest, OriginalRunError, checkout, record_original
from parity.prototypes.original.child import child_environment

Ask = Callable[..., OriginalRequest]
SCRIPT = "research/eagle3/train/main_train_full_gradient_calc_eagle3.py"


def read_meta(folder: Path) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
    return meta


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trajectory.jsonl").read_text().splitlines()]


def test_a_recording_of_the_toy(toy: Path, ask: Ask) -> None:
    request = ask(toy, gradient_accumulation_steps=2, epoch=0, noise=True, shuffle=True, seed=3, count_flops=True)
    folder = record_original(request)
    meta, rows, first = read_meta(folder), rows_of(folder), load_file(folder / "first_step.safetensors")
    assert meta["prints"] == ["toy sees 17 files", "toy pass 0"]
    assert meta["argv"][:2] == ["--basepath", "FIXTURE/verifier"]
    assert (meta["n_micro_batches"], meta["n_optimizer_steps"], meta["first_step_micro_batches"]) == (8, 4, [0, 1])
    assert len(meta["step_seconds"]) == len(meta["step_cpu_seconds"]) == 4
    assert meta["step_tokens"] == [32] * 4
    assert meta["first_step_flops"] > 0
    assert meta["saved_check"]["equals_final_state"]
    assert meta["dtypes_seen"]["fc.out"] == meta["dtypes_seen"]["attention.key_step1"] == "torch.float32"
    assert [row["synced"] for row in rows] == [False, True] * 4
    assert all(len(row["kldiv_steps"]) == 3 for row in rows)
    assert {name for name in first if ".grad." in name} == {
        f"mb1.grad.{name}.weight" for name in ("fc", "mix", "lm_head")
    }
    assert first["mb1.step2.logits"].shape == (2, 8, 96)
    assert len(load_file(folder / "noise_uniforms.safetensors")) == len(meta["sample_index_order"]) == 16
    assert (folder / "fixture" / "draft_eagle3.json").is_file()
    assert "init.mix.weight" in load_file(request.output / meta["initial"])


def test_only_timings_and_an_early_end(toy: Path, ask: Ask) -> None:
    folder = record_original(ask(toy, record=False, max_optimizer_steps=2))
    meta = read_meta(folder)
    assert [path.name for path in folder.iterdir()] == ["meta.json"]
    assert (meta["stopped_early"], len(meta["step_seconds"])) == (True, 2)


def test_another_model_in_its_place(toy: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed makes both models see the same samples, whatever their construction drew."""
    monkeypatch.setenv("PYTHONPATH", str(toy))
    common = {"shuffle": True, "seed": 11, "max_optimizer_steps": 1}
    one = read_meta(record_original(ask(toy, **common)))
    two = read_meta(record_original(ask(toy, case="two", redirect="stand_in", **common)))
    assert one["sample_index_order"] == two["sample_index_order"] != sorted(one["sample_index_order"])
    assert "mix.weight" in one["init_dtype"]
    assert "lm_head_layernorm.bias" in two["init_dtype"]


def test_a_failure_shows_the_end_of_stderr(toy: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    (toy / SCRIPT).write_text("raise RuntimeError('the moon is full')\n")
    monkeypatch.setattr("parity.prototypes.original.child.require_verified", lambda *_: None)
    with pytest.raises(OriginalRunError, match=r"case one, ended with exit status 1:[\s\S]*the moon is full"):
        record_original(ask(toy))
    assert not (ask(toy).folder).exists()


def test_a_run_that_takes_too_long(toy: Path, ask: Ask) -> None:
    with pytest.raises(OriginalRunError, match=r"ran longer than 0\.01 s"):
        record_original(ask(toy), timeout=0.01)


def test_a_stand_in_that_cannot_be_imported(toy: Path, ask: Ask) -> None:
    with pytest.raises(OriginalRunError, match="InputError: no_such_module: module: found No module named"):
        record_original(ask(toy, redirect="no_such_module"))


def test_weights_of_another_model(toy: Path, ask: Ask) -> None:
    wrong = ask(toy).fixture / "verifier" / "model-00001-of-00002.safetensors"
    with pytest.raises(OriginalRunError, match=r"init\.\*: found unknown \[\], missing"):
        record_original(ask(toy, initial_weights=wrong))


def test_a_changed_prototype_is_refused(toy: Path, ask: Ask) -> None:
    (toy / SCRIPT).write_text("")
    with pytest.raises(InputError, match=checkout.COMMIT):
        record_original(ask(toy))


def test_a_recording_is_not_overwritten(toy: Path, ask: Ask) -> None:
    request = ask(toy)
    request.folder.mkdir(parents=True)
    with pytest.raises(InputError, match="never overwritten"):
        record_original(request)
    assert request.folder.is_dir()


def test_a_fixture_without_samples(toy: Path, ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"draft_eagle3\.json: file: found missing"):
        record_original(ask(toy, fixture=tmp_path))


def test_the_child_gets_fixed_threads_and_little_else(toy: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    plain = child_environment(ask(toy, threads=3))
    assert (plain["OMP_NUM_THREADS"], plain["MKL_NUM_THREADS"], plain["HF_HUB_OFFLINE"]) == ("3", "3", "1")
    assert "ACCELERATE_MIXED_PRECISION" not in plain
    sharded = child_environment(ask(toy).model_copy(update={"dtype": "bf16ds"}))
    assert sharded["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
