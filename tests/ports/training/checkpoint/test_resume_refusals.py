"""Another run's checkpoint is refused with the difference, or resumed when that was asked for and means something."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ports.eagle3 import train as eagle3
from ports.errors import InputError
from ports.training.checkpoint import seal


@pytest.fixture
def stopped(run_until, tmp_path):
    return run_until("eagle3", tmp_path / "cp", 7)


CHANGES = [
    ({"lr": 2e-3}, "lr was 0.001, now 0.002"),
    ({"bs": 2}, "bs was 1, now 2"),
    ({"packing": True}, "packing was False, now True"),
    ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 1, now 2"),
    ({"epoch": 2}, "epoch was 1, now 2"),
    ({"noise": False}, "noise was True, now False"),
    ({"shuffle": False}, "shuffle was True, now False"),
    ({"group_by_length": True}, "group_by_length was False, now True"),
    ({"seed": 1}, "seed was 0, now 1"),
    ({"num_workers": 1}, "num_workers was 0, now 1"),
    ({"max_len": 5}, "max_len was 8192, now 5"),
    ({"mixed_precision": "bf16"}, "precision was no, now bf16"),
    ({"forward_num_total": 3}, "forward_num_total was 2, now 3"),
]


@pytest.mark.parametrize(("changes", "text"), CHANGES, ids=[text for _, text in CHANGES])
def test_other_settings(stopped, start_run, tmp_path, changes, text):
    with pytest.raises(InputError, match=r"state.json: fingerprint") as refused:
        start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, **changes)
    assert text in str(refused.value)
    assert "--resume_anyway" in str(refused.value)


@pytest.mark.parametrize(("changes", "text"), CHANGES, ids=[text for _, text in CHANGES])
def test_other_settings_on_request(stopped, start_run, tmp_path, capsys, changes, text):
    loop = start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, resume_anyway=True, **changes)
    assert f"resuming although {text}" in capsys.readouterr().out
    saved = load_file(stopped / "model.safetensors")
    assert torch.equal(loop.objective.draft.fc.weight, saved["fc.weight"])
    assert loop.steps == 8
    loop.run()
    assert loop.epoch == loop.plan.settings.epoch + 1


def test_another_rate_takes_effect_at_once(stopped, start_run, tmp_path):
    loop = start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, resume_anyway=True, lr=2e-3)
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(2e-3 * 4 / 12)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data_num", 9),
        ("max_steps", 9),
        ("save_steps", 9),
        ("keep_last", 9),
        ("prefetch_factor", 9),
        ("activation_checkpointing", True),
    ],
)
def test_settings_that_no_number_depends_on(stopped, start_run, tmp_path, name, value):
    start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, **{name: value})


def change_record(fixture):
    file = fixture / "data_eagle3" / "data_3.ckpt"
    record = torch.load(file, weights_only=True)
    size = file.stat().st_size
    record["hidden_state"][0, 0] += 1
    torch.save(record, file)
    assert file.stat().st_size == size, "only the contents differ"


def drop_record(fixture):
    (fixture / "data_eagle3" / "data_3.ckpt").unlink()


def rename_record(fixture):
    (fixture / "data_eagle3" / "data_3.ckpt").rename(fixture / "data_eagle3" / "data_9.ckpt")


@pytest.mark.parametrize("change", [change_record, drop_record, rename_record])
def test_other_records(stopped, fixture, start_run, tmp_path, change):
    change(fixture)
    with pytest.raises(InputError, match="records was"):
        start_run("eagle3", tmp_path / "cp", ckpt_path=stopped)
    loop = start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, resume_anyway=True)
    assert (loop.steps, loop.totals.batches) == (8, 0), "the pass starts anew"


def test_another_vocabulary_map_is_never_resumed(stopped, fixture, start_run, tmp_path):
    t2d = np.roll(np.load(fixture / "t2d.npy"), 1)
    np.save(fixture / "t2d.npy", t2d)
    np.save(fixture / "d2t.npy", np.flatnonzero(t2d) - np.arange(t2d.sum()))
    for anyway in (False, True):
        with pytest.raises(InputError, match="another vocabulary map"):
            start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, resume_anyway=anyway)


def test_another_verifier_is_never_resumed(stopped, fixture, start_run, tmp_path):
    for file in (fixture / "verifier").glob("*.safetensors"):
        save_file({name: value + 1 for name, value in load_file(file).items()}, file, {"format": "pt"})
    for anyway in (False, True):
        with pytest.raises(InputError, match="fingerprint: found verifier was"):
            start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, resume_anyway=anyway)


def test_another_log(stopped, start_run, tmp_path):
    (tmp_path / "cp" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"metrics.jsonl: log: found missing or another log"):
        start_run("eagle3", tmp_path / "cp", ckpt_path=stopped)
    start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, resume_anyway=True)


def edit(file: Path, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_newer_format_is_refused_by_its_number(stopped, start_run, tmp_path):
    for name in ("manifest.json", "state.json"):
        before = (stopped / "training_state" / name).read_bytes()
        edit(stopped / "training_state" / name, lambda content: content.update(format_version=2))
        for path in (stopped, Path("auto")):
            with pytest.raises(InputError, match=r"2, expected at most 1: written by a newer release|manifest"):
                start_run("eagle3", tmp_path / "cp", ckpt_path=path)
        (stopped / "training_state" / name).write_bytes(before)


def tensors(name, change):
    def edit_tensors(folder):
        stored = load_file(folder / "training_state" / name)
        change(stored)
        save_file(stored, folder / "training_state" / name)

    return edit_tensors


def halve(stored):
    stored.update({name: value.bfloat16() for name, value in stored.items() if name.startswith("exp_avg")})


def lose_steps(stored):
    for name in [name for name in stored if name.startswith("step.")]:
        del stored[name]


def other_generator(stored):
    stored["0.start.torch"] = torch.Generator().manual_seed(5).get_state()


def spoil(kind, number):
    def change(stored):
        stored[next(name for name in stored if name.startswith(kind))].fill_(number)

    return change


FORGED = {
    "NaN in Adam's state": (tensors("optimizer.safetensors", spoil("exp_avg.", math.nan)), "found NaN or Inf"),
    "squares below 0": (tensors("optimizer.safetensors", spoil("exp_avg_sq.", -1.0)), "found -1.0"),
    "a step before the first": (tensors("optimizer.safetensors", spoil("step.", -3.0)), "found -3.0"),
    "Adam in bfloat16": (tensors("optimizer.safetensors", halve), "found torch.bfloat16 .* expected torch.float32"),
    "no step counts": (tensors("optimizer.safetensors", lose_steps), "missing .'step.draft"),
    "no generators": (tensors("generators.safetensors", dict.clear), "generators.safetensors: generators: found"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_training_state_that_does_not_fit(stopped, start_run, tmp_path, name):
    """Whole by its manifest, and still not what a run saves."""
    change, message = FORGED[name]
    change(stopped)
    (stopped / "training_state" / "manifest.json").unlink()
    seal(stopped)
    with pytest.raises(InputError, match=message):
        start_run("eagle3", tmp_path / "cp", ckpt_path=stopped).run()


def test_a_place_behind_the_end_of_the_pass(stopped, start_run, tmp_path):
    edit(stopped / "training_state" / "state.json", lambda content: content["processes"][0].update(batches=7))
    (stopped / "training_state" / "manifest.json").unlink()
    seal(stopped)
    with pytest.raises(InputError, match="expected one number of at most 6, the batches of a pass"):
        start_run("eagle3", tmp_path / "cp", ckpt_path=stopped)


def test_other_draws_than_the_saved_ones_are_noticed(stopped, start_run, tmp_path):
    tensors("generators.safetensors", other_generator)(stopped)
    (stopped / "training_state" / "manifest.json").unlink()
    seal(stopped)
    with pytest.raises(InputError, match="another state after replaying 2 batches"):
        start_run("eagle3", tmp_path / "cp", ckpt_path=stopped).run()


def test_weights_only_starts_a_new_run(stopped, start_run, tmp_path):
    loop = start_run("eagle3", tmp_path / "new", ckpt_path=stopped, weights_only=True, lr=5e-4)
    assert torch.equal(loop.objective.draft.fc.weight, load_file(stopped / "model.safetensors")["fc.weight"])
    assert (loop.steps, loop.epoch, len(loop.optimizer.state)) == (0, 0, 0)


def test_weights_only_needs_a_directory(flags, capsys):
    assert eagle3.main(flags(weights_only=None)) == 2
    assert "weights_only needs the directory of a checkpoint" in capsys.readouterr().err
