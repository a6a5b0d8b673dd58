"""Every phase of a save fails once: what was there stays whole, the error says what happened, no rubbish stays."""

import errno
import os
import signal
from pathlib import Path

import pytest

import ports.training.keeper as keeper
from ports.errors import InputError
from ports.training import checkpoint
from ports.training.checkpoint import verify
from ports.training.resume import newest_whole

PHASES = {
    "the log": (os, "fsync", 1),
    "the draft": (keeper, "write_draft", 1),
    "the optimizer": (keeper, "save_file", 1),
    "the generators": (keeper, "save_file", 2),
    "the state": (keeper, "write_state", 1),
    "the manifest": (keeper, "seal", 1),
    "the first sync": (os, "fsync", 2),
    "a later sync": (os, "fsync", 6),
    "moving the old one aside": (os, "rename", 1),
    "moving the new one in": (os, "rename", 2),
}
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES}


def contents(folder: Path):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fail(monkeypatch, phase: str, act) -> None:
    """The n-th call of a phase does its work, or half of it, and then ``act`` happens."""
    owner, name, call = PHASES[phase]
    real, calls = getattr(owner, name), []

    def faulty(*arguments, **named):
        calls.append(arguments)
        if len(calls) == call:
            if owner is keeper:
                real(*arguments, **named)
            act()
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, faulty)


@pytest.fixture
def saved_twice(start_run, tmp_path):
    """A loop in the middle of a run that has ``step_1`` and ``step_2``, about to save ``step_2`` again."""
    loop = start_run("hass", tmp_path / "cp", save_steps=1)
    for step in loop.optimizer_steps():
        if step == 2:
            return loop
    return None


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("code", ERRORS)
def test_an_error(saved_twice, tmp_path, monkeypatch, phase, code):
    cpdir = tmp_path / "cp"
    before = contents(cpdir)

    def act():
        raise OSError(ERRORS[code], os.strerror(ERRORS[code]), "a file")

    fail(monkeypatch, phase, act)
    with pytest.raises(InputError) as failed:
        saved_twice.plan.keeper.save(saved_twice, "step_2")
    monkeypatch.undo()
    assert str(failed.value).startswith(f"{cpdir / 'step_2'}: checkpoint: found [Errno {ERRORS[code]}]")
    assert "the step_2 from before is untouched" in str(failed.value)
    assert contents(cpdir) == before
    assert newest_whole(cpdir).directory == cpdir / "step_2"


@pytest.mark.parametrize("phase", PHASES)
def test_a_crash(saved_twice, start_run, tmp_path, monkeypatch, phase):
    """The process dies there; the next one finds a whole checkpoint and clears the rest away."""
    cpdir = tmp_path / "cp"
    child = os.fork()
    if child == 0:
        fail(monkeypatch, phase, lambda: os.kill(os.getpid(), signal.SIGKILL))
        saved_twice.plan.keeper.save(saved_twice, "step_2")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert phase == "the log" or any(path.name.startswith(f"{checkpoint.MARK}step_2") for path in cpdir.iterdir())
    found = newest_whole(cpdir)
    assert found.state.steps == 2
    verify(found.directory)
    saved_twice.accelerator.directory_lock.release()
    loop = start_run("hass", cpdir, ckpt_path=Path("auto"), save_steps=1)
    assert loop.steps == 2
    hidden = {path.name for path in cpdir.iterdir() if path.name.startswith(".")}
    assert hidden == {".lock"}
    assert {path.name for path in cpdir.iterdir() if path.is_dir()} == {"step_1", "step_2"}


def test_a_directory_that_cannot_be_written(flags, tmp_path, capsys, monkeypatch):
    from ports.eagle3 import train as eagle3

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "model.safetensors")

    monkeypatch.setattr(keeper, "write_draft", refuse)
    assert eagle3.main(flags()) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "model0: checkpoint: found [Errno 13] Permission denied: 'model.safetensors' while saving" in said
    assert "nothing of it was kept" in said


DAMAGES = {
    "a flipped bit in the weights": lambda folder: flip(folder / "model.safetensors"),
    "a flipped bit in Adam's state": lambda folder: flip(folder / "training_state" / "optimizer.safetensors"),
    "a flipped bit in the state": lambda folder: flip(folder / "training_state" / "state.json"),
    "a torn file": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "a file missing": lambda folder: (folder / "config.json").unlink(),
    "no manifest": lambda folder: (folder / "training_state" / "manifest.json").unlink(),
    "an empty manifest": lambda folder: os.truncate(folder / "training_state" / "manifest.json", 0),
}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_auto_passes_over_a_damaged_checkpoint_and_says_so(saved_twice, tmp_path, damage):
    cpdir, said = tmp_path / "cp", []
    DAMAGES[damage](cpdir / "step_2")
    assert newest_whole(cpdir, said.append).directory == cpdir / "step_1"
    assert said[0].startswith("passing over step_2, which is damaged: ")
    assert said[-1] == f"resuming from {cpdir / 'step_1'}"
    DAMAGES[damage](cpdir / "step_1")
    with pytest.raises(InputError, match="only damaged checkpoints"):
        newest_whole(cpdir)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_by_name_is_refused(saved_twice, start_run, tmp_path, damage):
    DAMAGES[damage](tmp_path / "cp" / "step_2")
    with pytest.raises(InputError, match="step_2"):
        start_run("hass", tmp_path / "cp", ckpt_path=tmp_path / "cp" / "step_2")


def test_auto_without_any_checkpoint_is_a_fresh_start(start_run, tmp_path, capsys):
    assert start_run("eagle3", tmp_path / "cp", ckpt_path=Path("auto")).steps == 0
    assert f"no checkpoint in {tmp_path / 'cp'} yet: a fresh start" in capsys.readouterr().out


def test_auto_takes_the_checkpoint_saved_last_not_the_one_of_most_steps(saved_twice, start_run, tmp_path):
    """A run that went back to an older one by name is not sent to where it had been."""
    loop = start_run("hass", tmp_path / "cp", ckpt_path=tmp_path / "cp" / "step_1")
    loop.plan.keeper.save(loop, "step_1")
    assert newest_whole(tmp_path / "cp").directory.name == "step_1"


def test_keep_last_and_the_best_pass(run_to_the_end, tmp_path):
    cpdir = tmp_path / "cp"
    run_to_the_end("eagle3", cpdir, save_steps=2, keep_last=2, epoch=3, bs=2, noise=False, max_steps=10)
    names = {path.name for path in cpdir.iterdir() if path.is_dir()}
    assert names == {"model2", "step_10", "model3"}, "what is learned by heart gets better; a pass cut short is no best"


def test_a_file_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "data_0.safetensors"
    checkpoint.write_file(file, b"old")
    monkeypatch.setattr(checkpoint.os, "rename", _full)
    with pytest.raises(InputError, match=r"the data_0\.safetensors from before is untouched"):
        checkpoint.write_file(file, b"new")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == b"old"


def _full(*paths):
    raise OSError(28, "No space left on device")
