"""Where a run goes on from; another run's checkpoint is refused with the difference, or resumed on request."""

import json
import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ports.training.resume
import ports.training.runs
from ports.errors import InputError
from ports.training.checkpoint import FOLDER, MANIFEST, OPTIMIZER, STATE, seal, verify
from ports.training.resume import newest_intact
from ports.training.runs import take_directory
from tests.ports.conftest import edit, edit_tensors


@pytest.fixture(scope="module")
def stopped_once():
    """The checkpoint of the run below, once it is made."""
    return []


@pytest.fixture
def stopped(stopped_once, run_until, tmp_path_factory, tmp_path):
    """``step_8`` of a run that was stopped in its second pass, beside its ``model0``: a copy that a test may break."""
    if not stopped_once:
        stopped_once.append(run_until("eagle3", tmp_path_factory.mktemp("stopped") / "cp", 7))
    shutil.copytree(stopped_once[0].parent, tmp_path / "cp")
    return tmp_path / "cp" / stopped_once[0].name


CHANGES = {
    "numbers": {"lr": 2e-3, "gradient_accumulation_steps": 2, "epoch": 2, "seed": 1, "forward_num_total": 3},
    "precision": {"packing": True, "mixed_precision": "bf16"},
    "order": {"bs": 2, "shuffle": False, "num_workers": 1, "max_len": 5},
    "another order": {"group_by_length": True, "noise": False, "noise_stream": "keyed"},
}
BEFORE = {"lr": 1e-3, "gradient_accumulation_steps": 1, "epoch": 1, "seed": 0, "forward_num_total": 2, "packing": False}
BEFORE |= {"mixed_precision": "no", "bs": 1, "noise": True, "shuffle": True, "num_workers": 0, "max_len": 8192}
BEFORE |= {"group_by_length": False, "noise_stream": "drawn"}


@pytest.mark.parametrize("kind", CHANGES)
def test_other_settings_are_refused_or_taken_on_request(stopped, start_run, tmp_path, capsys, kind):
    changes = CHANGES[kind]
    names = {name: {"mixed_precision": "precision"}.get(name, name) for name in changes}
    texts = {f"{names[name]} was {BEFORE[name]}, now {value}" for name, value in changes.items()}
    texts |= {"num_workers was 0, now nothing"} if "noise" in changes else set()
    with pytest.raises(InputError, match=r"state.json: fingerprint: found .*--resume-anyway") as refused:
        start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, **changes)
    assert set(refused.value.found.split("; ")) == texts
    loop = start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, resume_anyway=True, **changes)
    said = capsys.readouterr().out.splitlines()
    assert {line.removeprefix("resuming although ") for line in said if line.startswith("resuming although")} == texts
    saved = load_file(stopped / "model.safetensors")
    assert torch.equal(loop.objective.draft.fc.weight, saved["fc.weight"])
    assert (loop.steps, loop.totals.batches) == (8, 0 if "order" in kind else 2)
    loop.run()
    assert loop.epoch == loop.plan.settings.epoch + 1


def test_a_setting_that_an_older_checkpoint_does_not_know_was_its_default(stopped, start_run, tmp_path):
    """A release that adds a setting locks nobody out of a run."""
    edit(stopped / STATE, lambda content: content["fingerprint"].pop("packing"))
    (stopped / MANIFEST).unlink()
    seal(stopped)
    with pytest.raises(InputError, match="packing was False, now True"):
        start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, packing=True)
    assert start_run("eagle3", tmp_path / "cp", ckpt_path=stopped).steps == 8


@pytest.mark.parametrize("main", [True, False])
def test_the_main_process_alone_hashes_a_checkpoint(stopped, settings, tmp_path, monkeypatch, main):
    """The others are told what it found, or why it refuses."""
    told, hashed, verify = [newest_intact(tmp_path / "cp")], [], ports.training.resume.verify
    monkeypatch.setattr(ports.training.resume, "verify", lambda path: hashed.append(path) or verify(path))
    monkeypatch.setattr(ports.training.runs, "broadcast_object_list", lambda own: own if main else told)
    chosen, accelerator = (
        settings(cpdir=tmp_path / "cp", ckpt_path="auto"),
        SimpleNamespace(is_main_process=main, print=print),
    )
    assert take_directory(chosen, accelerator) == told[0]
    assert hashed == ([stopped] if main else [])
    told[:] = [InputError("there", "cpdir", "a run", "none")]
    for folder in (tmp_path / "cp").iterdir():
        folder.is_dir() and (folder / MANIFEST).unlink()
    with pytest.raises(InputError, match="only damaged checkpoints" if main else "there: cpdir: found a run"):
        take_directory(chosen, accelerator)


def test_another_rate_takes_effect_at_once(stopped, start_run, tmp_path):
    loop = start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, resume_anyway=True, lr=2e-3)
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(2e-3 * 4 / 12)


def test_settings_that_no_number_depends_on(stopped, start_run, tmp_path):
    numbers = dict.fromkeys(("data_num", "max_steps", "save_steps", "keep_last", "prefetch_factor"), 9)
    start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, activation_checkpointing=True, **numbers)


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


def another_map(fixture):
    t2d = np.roll(np.load(fixture / "t2d.npy"), 1)
    np.save(fixture / "t2d.npy", t2d)
    np.save(fixture / "d2t.npy", np.flatnonzero(t2d) - np.arange(t2d.sum()))


def other_weights(fixture):
    for file in (fixture / "verifier").glob("*.safetensors"):
        edit_tensors(file, lambda tensors: [value.add_(1) for value in tensors.values()])


def another_activation(fixture):
    """The embedding and the head, all that the draft has of its verifier, are the same."""
    edit(fixture / "verifier" / "config.json", hidden_act="gelu")


def another_layers(fixture):
    config = json.loads((fixture.parent / "cp" / "model0" / "config.json").read_text())
    config["eagle_aux_hidden_state_layer_ids"] = [2, 4, 5]
    (fixture / "draft_eagle3.json").write_text(json.dumps(config))


@pytest.mark.parametrize("anyway", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_map, "another vocabulary map"),
        (other_weights, "fingerprint: found frozen was .* verifier was"),
        (another_activation, "fingerprint: found verifier was"),
        (another_layers, "fingerprint: found draft was"),
    ],
)
def test_what_is_never_resumed(stopped, fixture, start_run, tmp_path, change, said, anyway):
    change(fixture)
    with pytest.raises(InputError, match=said):
        start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, resume_anyway=anyway)


def test_another_log(stopped, start_run, tmp_path):
    (tmp_path / "cp" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"metrics.jsonl: log: found missing or another log"):
        start_run("eagle3", tmp_path / "cp", ckpt_path=stopped)
    start_run("eagle3", tmp_path / "cp", ckpt_path=stopped, resume_anyway=True)


def state(change=lambda content: None, **values):
    return lambda folder: edit(folder / STATE, change, **values)


def tensors(name, change):
    return lambda folder: edit_tensors(folder / "training_state" / name, change)


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


ADAM, GENERATORS = "optimizer.safetensors", "generators.safetensors"
FORGED = {
    "NaN in Adam's state": (tensors(ADAM, spoil("exp_avg.", math.nan)), "found NaN or Inf"),
    "squares below 0": (tensors(ADAM, spoil("exp_avg_sq.", -1.0)), "found -1.0"),
    "a step before the first": (tensors(ADAM, spoil("step.", -3.0)), "found -3.0"),
    "a place behind the end": (
        state(lambda content: content["processes"][0].update(batches=7)),
        "expected one number of at most 6, the batches of a pass",
    ),
    "no process": (state(processes=[]), "state.json: processes: found"),
    "Adam in bfloat16": (tensors(ADAM, halve), "exp_avg.*found torch.bfloat16 .* expected torch.float32"),
    "no step counts": (tensors(ADAM, lose_steps), r"step.*: found no such tensor, expected torch.float32 \(\)"),
    "nothing of Adam's": (tensors(ADAM, dict.clear), "exp_avg.*: found no such tensor, expected torch.float32"),
    "no generators": (tensors(GENERATORS, dict.clear), "generators.safetensors: generators: found no entry 'torch'"),
    "no state of torch's": (
        tensors(GENERATORS, lambda stored: stored["0.start.torch"].fill_(255)),
        "generators.safetensors: generators: found",
    ),
    "other draws": (tensors(GENERATORS, other_generator), "another state after replaying 2 batches"),
    "a count below 0": (state(steps=-1), "state.json: steps: found -1"),
    "a count that is text": (state(best=["0", 1.0]), "state.json: best.0: found '0'"),
    "a field of no release": (state(more=1), "state.json: more: found 1"),
    "a newer format": (
        state(format_version=3, more=1),
        "3, expected at most 2: written by a newer release",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_training_state_that_does_not_fit(stopped, start_run, tmp_path, name):
    """Whole by its manifest, and still not what a run saves."""
    change, message = FORGED[name]
    change(stopped)
    (stopped / MANIFEST).unlink()
    seal(stopped)
    with pytest.raises(InputError, match=message):
        start_run("eagle3", tmp_path / "cp", ckpt_path=stopped).run()


@pytest.mark.parametrize("name", [MANIFEST, STATE])
@pytest.mark.parametrize(
    ("version", "said"),
    [(3, "at most 2: written by a newer release"), (1, "2: written by an older release, .* --weights-only starts")],
)
def test_another_format_is_not_passed_over(stopped, name, version, said):
    edit(stopped / name, format_version=version)
    with pytest.raises(InputError, match=f"found {version}, expected {said}"):
        newest_intact(stopped.parent)


@pytest.mark.parametrize("name", [STATE, "config.json", "model.safetensors", OPTIMIZER, f"{FOLDER}/{GENERATORS}"])
def test_a_manifest_that_leaves_something_out_vouches_for_nothing(stopped, name):
    edit(stopped / MANIFEST, lambda content: content["files"].pop(name))
    with pytest.raises(InputError, match=f"manifest.json: files: found no {name}, expected a manifest of the draft"):
        verify(stopped)


def test_rows_of_each_process_are_of_an_older_release(stopped):
    shutil.copy(stopped / OPTIMIZER, stopped / FOLDER / "optimizer_0.safetensors")
    seal(stopped)
    with pytest.raises(InputError, match=r"files: found .*optimizer_0.* older release; --from-checkpoint starts"):
        newest_intact(stopped.parent)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


DAMAGES = {
    "a flipped bit in the weights": lambda folder: flip(folder / "model.safetensors"),
    "a torn file": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "a file missing": lambda folder: (folder / "config.json").unlink(),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "an empty manifest": lambda folder: os.truncate(folder / MANIFEST, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_and_passed_over_by_auto(stopped, start_run, tmp_path, damage):
    cpdir, said = tmp_path / "cp", []
    DAMAGES[damage](stopped)
    with pytest.raises(InputError, match="step_8"):
        start_run("eagle3", cpdir, ckpt_path=stopped)
    assert newest_intact(cpdir, said.append).directory == cpdir / "model0"
    assert said[0].startswith("passing over step_8, which is damaged: ")
    assert said[-1] == f"resuming from {cpdir / 'model0'}"
    DAMAGES[damage](cpdir / "model0")
    with pytest.raises(InputError, match="only damaged checkpoints"):
        newest_intact(cpdir)


def test_auto_takes_the_checkpoint_saved_last_not_the_one_of_most_steps(stopped, start_run, tmp_path):
    """A run that went back to an older one by name is not sent to where it had been."""
    loop = start_run("eagle3", tmp_path / "cp", ckpt_path=tmp_path / "cp" / "model0")
    loop.plan.checkpoint_manager.save(loop, "model0")
    assert newest_intact(tmp_path / "cp").directory.name == "model0"


def test_weights_only_starts_a_new_run(stopped, start_run, tmp_path):
    loop = start_run("eagle3", tmp_path / "new", ckpt_path=stopped, weights_only=True, lr=5e-4)
    assert torch.equal(loop.objective.draft.fc.weight, load_file(stopped / "model.safetensors")["fc.weight"])
    assert (loop.steps, loop.epoch, len(loop.optimizer.state)) == (0, 0, 0)
