"""Directories and files that appear whole or not at all, when the writing fails too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from parity.compare import Subject, compare_value
from parity.errors import InputError
from parity.result import Row
from ports.training.checkpoint import atomic
from ports.training.tracking import JsonLinesTracker


def check_writing(subject: Subject, root: Path) -> Iterator[Row]:
    """Rows of the upkeep check: what lies there after a write, a replacement, a failure and a removal."""
    folder = root / "written" / "below"
    target = folder / "one"
    for text in ("first", "second"):
        atomic.write_directory(target, _filled(text))
        yield compare_value(subject, "written", text, {"one/file": text}, _contents(folder))
    found = _refused(lambda: atomic.write_directory(target, _broken))
    yield compare_value(subject, "written", "a full disk", ("checkpoint", True), (found[0], "untouched" in found[1]))
    yield compare_value(subject, "written", "after a full disk", {"one/file": "second"}, _contents(folder))
    found = _refused(lambda: atomic.write_directory(folder / "two", _broken))
    yield compare_value(subject, "written", "a full disk, new", ("checkpoint", True), (found[0], "nothing" in found[1]))
    found = _refused(lambda: atomic.write_directory(target, lambda partial: None))
    yield compare_value(subject, "written", "nothing to put there", "checkpoint", found[0])
    with patch("os.rename", _renames_all_but_new):
        found = _refused(lambda: atomic.write_directory(target, _filled("third")))
    yield compare_value(subject, "written", "cannot be put there", "checkpoint", found[0])
    yield compare_value(subject, "written", "put back", {"one/file": "second"}, _contents(folder))
    atomic.remove_directory(target)
    yield compare_value(subject, "written", "removed", {}, _contents(folder))
    yield from _undeletable(subject, root / "undeletable")
    yield from _synced(subject, root / "synced")
    yield from _present(subject, root / "present")
    yield _full_log(subject, root)
    yield from _files(subject, folder)


def _undeletable(subject: Subject, folder: Path) -> Iterator[Row]:
    """A disk that deletes nothing stops no run: what was to go is out of sight, what was written lies there."""
    target = folder / "one"
    atomic.write_directory(target, _filled("first"))
    with patch("shutil.rmtree", _deletes_nothing):
        refused = _refused(lambda: atomic.write_directory(target, _filled("second")))
        yield compare_value(subject, "written", "replaced, not deleted", ("", ""), refused)
        yield compare_value(subject, "written", "in its place", "second", (target / "file").read_text())
        refused = _refused(lambda: atomic.remove_directory(target))
        yield compare_value(subject, "written", "removed, not deleted", ("", ""), refused)
    yield compare_value(subject, "written", "out of sight", [], [path.name for path in folder.glob("[!.]*")])
    with patch("shutil.rmtree", _deletes_nothing):
        refused = _refused(lambda: atomic.sweep(folder))
    yield compare_value(subject, "written", "swept, not deleted", ("", ""), refused)


def _synced(subject: Subject, folder: Path) -> Iterator[Row]:
    """Everything is on the disk before it has its name: the file, its folder, and then the folder above."""
    one, file = folder / "one", folder / "file"
    found = _inodes_synced(lambda: atomic.write_directory(one, _filled("first")))
    expected = [path.stat().st_ino for path in (one / "file", one, folder)]
    yield compare_value(subject, "written", "directory synced", expected, found)
    found = _inodes_synced(lambda: atomic.write_file(file, b"first"))
    expected = [path.stat().st_ino for path in (file, folder)]
    yield compare_value(subject, "written", "file synced", expected, found)


def _inodes_synced(write: Callable[[], object]) -> list[int]:
    synced: list[int] = []
    with patch("os.fsync", lambda handle: synced.append(os.fstat(handle).st_ino)):
        write()
    return synced


def _present(subject: Subject, folder: Path) -> Iterator[Row]:
    """What can be gone on from: whole directories, and those moved aside that nothing took the place of."""
    hidden = (f"{atomic.MARK}{name}" for name in ("whole.old", "aside.old", "half.partial", "gone.removed"))
    for name in ("whole", *hidden, ".mine.old"):
        (folder / name).mkdir(parents=True)
    for name in ("file", ".hidden"):
        (folder / name).touch()
    found = sorted((path.name, atomic.public_name(path)) for path in atomic.present(folder))
    yield compare_value(
        subject, "written", "present", [(f"{atomic.MARK}aside.old", "aside"), ("whole", "whole")], found
    )


def _renames_all_but_new(source: Path, target: Path, rename: Callable[..., None] = os.rename) -> None:
    if Path(source).name.endswith(atomic.PARTIAL):
        raise OSError(5, "Input/output error", str(source))
    rename(source, target)


def _deletes_nothing(path: Any, ignore_errors: bool = False, **_: Any) -> None:
    if not ignore_errors:
        raise OSError(5, "Input/output error", str(path))


def _files(subject: Subject, folder: Path) -> Iterator[Row]:
    for text in ("first", "second"):
        atomic.write_file(folder / "file", text.encode())
        yield compare_value(subject, "written", f"file, {text}", {"file": text}, _contents(folder))
    (folder / "taken").mkdir()
    found = _refused(lambda: atomic.write_file(folder / "taken", b""))
    yield compare_value(subject, "written", "file in a folder's place", "file", found[0])
    yield compare_value(subject, "written", "after it", {"file": "second"}, _contents(folder))
    found = _refused(lambda: atomic.write_file(folder / "nowhere" / "file", b""))
    yield compare_value(subject, "written", "file in no folder", "file", found[0])


class _FullDisk:
    """A file that nothing can be written to any more."""

    def write(self, line: bytes) -> None:
        raise OSError(28, "No space left on device")


def _full_log(subject: Subject, folder: Path) -> Row:
    """A line of metrics that finds no room."""
    tracker = JsonLinesTracker(folder / "metrics.jsonl")
    tracker._stream = _FullDisk()
    found = _refused(lambda: tracker.log({"train/loss": 1.0}, 0))
    return compare_value(
        subject, "written", "metrics on a full disk", ("metrics", "room and permission to write"), found
    )


def _filled(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "file").write_text(text)

    return fill


def _broken(folder: Path) -> None:
    _filled("half")(folder)
    raise OSError(28, "No space left on device")


def _refused(write: Callable[[], object]) -> tuple[str, str]:
    """Field and expectation of the refusal; of another failure its text."""
    try:
        write()
    except InputError as error:
        return error.field or "?", str(error.expected)
    except OSError as error:
        return "OSError", str(error)
    return "", ""


def _contents(folder: Path) -> dict[str, str]:
    """Every file below ``folder``, hidden ones too."""
    return {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*") if file.is_file()}
