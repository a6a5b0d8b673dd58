"""Directories and files appear whole, stay whole, and go out of sight, on a disk that does not do all it is asked."""

import os
import shutil

import pytest

from ports.errors import InputError
from ports.training.checkpoint import (
    LARGEST,
    MARK,
    STATE,
    WEIGHTS,
    public_name,
    read_state,
    remove_directory,
    saved_in,
    sweep,
    write_directory,
    write_file,
)
from ports.training.tracking import JsonLinesTracker


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


def test_what_can_be_gone_on_from(tmp_path):
    """Whole directories, and those moved aside that nothing took the place of."""
    names = (
        "whole",
        f"{MARK}whole.old",
        f"{MARK}aside.old",
        f"{MARK}half.partial",
        f"{MARK}gone.removed",
        ".users.old",
    )
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS).touch()
    (tmp_path / "file").touch()
    found = [(path.name, public_name(path)) for path in saved_in(tmp_path)]
    assert found == [(f"{MARK}aside.old", "aside"), ("whole", "whole")]


@pytest.mark.parametrize("place", ["taken", "nowhere/file"])
def test_a_file_that_has_no_place_is_refused(tmp_path, place):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match=r": file: found .* expected room and permission to write"):
        write_file(tmp_path / place, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_line_of_metrics_that_finds_no_room_is_refused(tmp_path):
    tracker = JsonLinesTracker(tmp_path / "metrics.jsonl")
    tracker._stream = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(InputError, match=r"metrics.jsonl: metrics: found .*, expected room and permission to write"):
        tracker.log({"train/loss": 1.0}, 0)


@pytest.mark.parametrize(("more", "found"), [(0, "serial: found {'a': 1}"), (1, f"state: found {LARGEST + 1} bytes")])
def test_json_is_read_up_to_64_mib(tmp_path, more, found):
    (tmp_path / STATE).parent.mkdir()
    (tmp_path / STATE).write_bytes(b'{"a": 1}'.ljust(LARGEST + more))
    with pytest.raises(InputError, match=found):
        read_state(tmp_path)
