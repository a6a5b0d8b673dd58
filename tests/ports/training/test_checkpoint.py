"""When a run is saved, which checkpoints stay and what they hold, on a disk that does not do all it is asked.

Every phase of a save fails once: what was there stays as it was, the error says what happened, no rubbish stays.
"""

import errno
import itertools
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from speculators import SpeculatorModel

from ports.eagle3 import train as eagle3
from ports.errors import InputError
from ports.training import checkpoint_manager, runs
from ports.training.checkpoint import (
    FOLDER,
    LARGEST,
    MARK,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    DirectoryLock,
    read_state,
    remove_directory,
    sweep,
    verify,
    write_directory,
    write_file,
)
from ports.training.resume import newest_intact
from ports.training.saving import load_weights, save_draft, write_published
from tests.ports.generate.conftest import contents

PHASES = {
    "the log": (os, "fsync", 1),
    "the draft": (checkpoint_manager, "write_draft", 1),
    "the optimizer": (checkpoint_manager, "save_file", 1),
    "the generators": (checkpoint_manager, "save_file", 2),
    "the state": (checkpoint_manager, "write_state", 1),
    "the manifest": (checkpoint_manager, "seal", 1),
    "the first sync": (os, "fsync", 2),
    "a later sync": (os, "fsync", 6),
    "moving the old one aside": (os, "rename", 1),
    "moving the new one in": (os, "rename", 2),
}
CODES = [errno.ENOSPC, errno.EIO, errno.EACCES]


def fails(code):
    raise OSError(code, os.strerror(code))


def fail(monkeypatch, phase, act):
    """The n-th call of a phase does its work, or half of it, and then ``act`` happens."""
    owner, name, call = PHASES[phase]
    real, calls = getattr(owner, name), []

    def faulty(*arguments, **named):
        calls.append(arguments)
        if len(calls) == call:
            if owner is checkpoint_manager:
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


@pytest.mark.parametrize(("phase", "code"), zip(PHASES, itertools.cycle(CODES)))
def test_an_error(saved_twice, tmp_path, monkeypatch, phase, code):
    cpdir = tmp_path / "cp"
    before = contents(cpdir)

    fail(monkeypatch, phase, lambda: fails(code))
    with pytest.raises(InputError) as failed:
        saved_twice.plan.checkpoint_manager.save(saved_twice, "step_2")
    monkeypatch.undo()
    assert str(failed.value).startswith(f"{cpdir / 'step_2'}: checkpoint: found [Errno {code}]")
    assert contents(cpdir) == before
    assert newest_intact(cpdir).directory == cpdir / "step_2"


@pytest.mark.parametrize("phase", PHASES)
def test_a_crash(saved_twice, start_run, tmp_path, monkeypatch, phase):
    """The process dies there; the next one finds a whole checkpoint and clears the rest away."""
    cpdir = tmp_path / "cp"
    child = os.fork()
    if child == 0:
        try:
            fail(monkeypatch, phase, lambda: os.kill(os.getpid(), signal.SIGKILL))
            saved_twice.plan.checkpoint_manager.save(saved_twice, "step_2")
        finally:  # whatever it raises, this is no second pytest
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert phase == "the log" or any(path.name.startswith(f"{MARK}step_2") for path in cpdir.iterdir())
    saved_twice.accelerator.directory_lock.release()
    loop = start_run("hass", cpdir, ckpt_path=Path("auto"), save_steps=1)
    assert loop.steps == 2
    verify(cpdir / "step_2")
    hidden = {path.name for path in cpdir.iterdir() if path.name.startswith(".")}
    assert hidden == {".lock"}
    assert {path.name for path in cpdir.iterdir() if path.is_dir()} == {"step_1", "step_2"}


def holding(text):
    def fill(folder):
        folder.mkdir()
        (folder / "file").write_text(text)

    return fill


def test_a_disk_that_deletes_nothing_stops_no_run(tmp_path, monkeypatch):
    def keep(path, ignore_errors=False, **_):
        if not ignore_errors:
            raise OSError(5, "Input/output error", str(path))

    target = write_directory(tmp_path / "one", holding("first"))
    monkeypatch.setattr(shutil, "rmtree", keep)
    assert (write_directory(target, holding("second")) / "file").read_text() == "second"
    remove_directory(target)
    assert not target.exists()
    sweep(tmp_path)


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Files, their folder, then the folder above."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    one, file = write_directory(tmp_path / "one", holding("text")), tmp_path / "file"
    write_file(file, b"text")
    assert synced == [path.stat().st_ino for path in (one / "file", one, tmp_path, file, tmp_path)]


def test_a_file_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "data_0.safetensors"
    write_file(file, b"old")
    monkeypatch.setattr(os, "rename", lambda *paths: fails(errno.ENOSPC))
    with pytest.raises(InputError, match=r"data_0\.safetensors: file: found .Errno 28. No space left on device"):
        write_file(file, b"new")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == b"old"


@pytest.fixture
def holder(hold, tmp_path):
    """Another process that holds the lock and has a child, as a run with loader processes has."""
    return hold(tmp_path)


def test_a_lock_says_who_holds_it_and_dies_with_its_holder(holder, tmp_path):
    with pytest.raises(InputError, match=f"in use by process {holder.pid} on {socket.gethostname()}"):
        DirectoryLock(tmp_path)
    holder.kill()
    lock = DirectoryLock(tmp_path)
    assert lock.file.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_run_is_refused_before_it_touches_anything(holder, flags, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("the other run's\n")
    assert eagle3.main(flags(cpdir=tmp_path, ckpt_path="auto")) == 2
    assert "in use by process" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == "the other run's\n"


def test_a_run_that_is_asked_to_stop_saves_where_it_stands_unless_it_just_did(start_run, tmp_path):
    loop, saved = start_run("eagle3", tmp_path / "cp", save_steps=2), []
    for _ in zip(range(3), loop.optimizer_steps()):
        before = {path.name: path.stat().st_ino for path in (tmp_path / "cp").glob("step_*")}
        found = loop.plan.checkpoint_manager.on_stop(loop)
        saved.append((found.name, before.get(found.name) == found.stat().st_ino))
    assert saved == [("step_1", False), ("step_2", True), ("step_3", False)]


@pytest.mark.parametrize(("slow", "told"), [(0.0, 1), (600.0, 0)])
def test_how_long_a_save_takes_is_said_where_it_is_long(start_run, tmp_path, monkeypatch, capsys, slow, told):
    monkeypatch.setattr("ports.training.checkpoint_manager.SLOW", slow)
    start_run("eagle3", tmp_path / "cp", save_steps=1, max_steps=2).run()
    assert capsys.readouterr().out.count("a save takes 1 s") == told


def test_keep_last_and_the_best_pass(run_to_the_end, tmp_path):
    cpdir = tmp_path / "cp"
    run_to_the_end("eagle3", cpdir, save_steps=2, keep_last=2, epoch=3, bs=2, noise=False, max_steps=10)
    names = {path.name for path in cpdir.iterdir() if path.is_dir()}
    assert names == {"model2", "step_10", "model3"}, "what is learned by heart gets better; a pass cut short is no best"


def test_keep_last_leaves_what_the_user_put_aside(run_to_the_end, tmp_path):
    """Whatever its name or its place; a link of a run's own name too, which a start afresh removes, and it alone."""
    cpdir, aside = tmp_path / "cp", tmp_path / "aside"
    run_to_the_end("hass", cpdir, epoch=0, save_steps=3)
    for copy in (cpdir / "best so far", aside):
        shutil.copytree(cpdir / "step_3", copy)
    (cpdir / "step_2").symlink_to(aside)
    before = contents(aside)
    run_to_the_end("hass", cpdir, ckpt_path=cpdir / "step_3", epoch=0, save_steps=3, keep_last=1)
    assert {path.name for path in cpdir.iterdir() if path.is_dir()} == {"best so far", "step_2", "state_0"}
    (cpdir / "state_0").rename(tmp_path / "moved")
    (cpdir / "state_0").symlink_to(tmp_path / "moved")
    run_to_the_end("hass", cpdir, epoch=0)
    assert {path.name: path.is_symlink() for path in cpdir.iterdir() if path.is_dir()} == {
        "best so far": False,
        "state_0": False,
    }
    assert contents(aside) == before
    assert not list(cpdir.glob(f"{MARK}*"))


def test_a_links_end_stays(tmp_path):
    """Of what is written over, removed, or cleared away."""
    kept = write_directory(tmp_path / "kept", holding("the user's"))
    links = [tmp_path / name for name in ("one", "two", f"{MARK}three.partial", "broken")]
    for link in links:
        link.symlink_to(kept if link.name != "broken" else tmp_path / "nowhere")
    remove_directory(tmp_path / "one")
    for name in ("two", "broken"):
        assert (write_directory(tmp_path / name, holding("new")) / "file").read_text() == "new"
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "two", "broken"}
    assert (kept / "file").read_text() == "the user's"


def test_room_is_asked_for_all_that_a_checkpoint_holds(start_run, tmp_path, monkeypatch, algorithm):
    """Eagle3's embedding is frozen, and saved."""
    asked = []
    monkeypatch.setattr(runs, "check_output", lambda directory, field, needed: asked.append(needed))
    start_run(algorithm, tmp_path / "cp", epoch=0).run()
    (draft,), (adam,) = ((tmp_path / "cp").glob(f"*/{name}") for name in (WEIGHTS, OPTIMIZER))
    moments = [value for name, value in load_file(adam).items() if name.startswith("exp_avg")]
    assert asked == [sum(value.nbytes for value in (*load_file(draft).values(), *moments))]


@pytest.mark.parametrize(("more", "found"), [(0, "serial: found {'a': 1}"), (1, f"state: found {LARGEST + 1} bytes")])
def test_json_is_read_up_to_64_mib(tmp_path, more, found):
    (tmp_path / STATE).parent.mkdir()
    (tmp_path / STATE).write_bytes(b'{"a": 1}'.ljust(LARGEST + more))
    with pytest.raises(InputError, match=found):
        read_state(tmp_path)


def test_only_the_drafts_own_tensors_are_written_in_their_dtype(lively_draft, tmp_path):
    draft = lively_draft()
    save_draft(draft, tmp_path / "a")
    save_draft(draft.bfloat16(), tmp_path / "b")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert set(first) == {name for name in draft.state_dict() if not name.startswith("verifier_")}
    floats = {name for name, value in first.items() if value.is_floating_point()}
    assert {first[name].dtype for name in floats} == {torch.float32}
    assert {second[name].dtype for name in floats} == {torch.bfloat16}
    assert "ttt_" not in (tmp_path / "a" / "config.json").read_text(), "no attention of ours"


def test_what_is_frozen_is_saved_in_16_bits_where_they_are_exact(lively_draft, tmp_path):
    draft = lively_draft()
    file = save_draft(draft, tmp_path / "draft") / WEIGHTS
    assert load_file(file)["embed_tokens.weight"].dtype is torch.float32, "no bf16 verifier's"
    for value in draft.parameters():
        value.data = value.data.bfloat16().float()
    tensors = load_file(save_draft(draft, file.parent) / WEIGHTS)
    floats = {name: value for name, value in tensors.items() if value.is_floating_point()}
    assert {name for name, value in floats.items() if value.dtype is not torch.float32} == {"embed_tokens.weight"}
    own = draft.state_dict()
    for opened in (tensors, SpeculatorModel.from_pretrained(file.parent).state_dict()):
        assert all(torch.equal(opened[name].to(own[name].dtype), own[name]) for name in floats)


def test_a_published_draft_is_the_checkpoints_in_the_verifiers_dtype(lively_draft, tmp_path):
    draft = lively_draft()
    source, target = save_draft(draft, tmp_path / "a"), tmp_path / "b"
    (source / FOLDER).mkdir()
    (source / "tokenizer.json").write_text("{}")
    write_published(source, target, torch.bfloat16)
    assert {path.name for path in target.iterdir()} == {path.name for path in source.iterdir()} - {FOLDER}
    opened = SpeculatorModel.from_pretrained(target)
    assert {value.dtype for value in opened.parameters()} == {torch.bfloat16}
    expected = draft.bfloat16().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in opened.state_dict().items())


@pytest.fixture
def checkpoint(lively_draft, tmp_path):
    return save_draft(lively_draft(seed=3), tmp_path / "checkpoint")


CHANGES = [
    ({"fc.weight": None}, "tensors", "missing ['fc.weight']", "exactly the draft's tensors"),
    ({"fc.bias": torch.zeros(1)}, "tensors", "unexpected ['fc.bias']", "exactly the draft's tensors"),
    ({"fc.weight": torch.zeros(2, 3)}, "fc.weight", "shape (2, 3)", "shape (32, 96)"),
    ({"fc.weight": torch.zeros(32, 96).to(torch.complex64)}, "fc.weight", "torch.complex64", "16 bits and more"),
    ({"d2t": torch.zeros(23, dtype=torch.int64)}, "d2t", "another vocabulary map", "the one of the t2d and d2t files"),
    ({"t2d": torch.ones(61, dtype=torch.bool)}, "t2d", "another vocabulary map", "the one of the t2d and d2t files"),
]


@pytest.mark.parametrize(("change", "field", "found", "expected"), CHANGES)
def test_a_checkpoint_of_something_else_is_refused(lively_draft, checkpoint, refuses, change, field, found, expected):
    file = checkpoint / "model.safetensors"
    weights = {**load_file(file), **change}
    save_file({name: value for name, value in weights.items() if value is not None}, file)
    draft = lively_draft()
    before = draft.fc.weight.clone()
    with refuses(file, field, found, expected):
        load_weights(draft, checkpoint)
    assert torch.equal(draft.fc.weight, before)
