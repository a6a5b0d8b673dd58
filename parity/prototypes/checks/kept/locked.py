"""The lock on a run's directory, beside other processes that want it."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from parity.compare import Subject, compare_value
from parity.errors import InputError
from parity.verdict import Row
from ports.training.checkpoint.lock import FILE, DirectoryLock

HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)
"""Another process that holds the lock until it is told to end."""

TRY = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

HOLDER = "process 1 on " + "there" * 50
"""More than is repeated of what stands in the file."""


def check_lock(subject: Subject, folder: Path) -> Iterator[Row]:
    """Rows of the upkeep check: another process' directory is refused, with its name, until it ends."""
    folder.mkdir(parents=True)
    (folder / FILE).write_text(f"{HOLDER}\n")
    holder = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, str(folder / FILE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield compare_value(subject, "lock", "held", ("cpdir", f"in use by {HOLDER[:200]}"), _locked(folder))
    finally:
        holder.communicate(b"\n")
    yield compare_value(subject, "lock", "given back", ("", ""), _locked(folder))
    lock = DirectoryLock(folder)
    yield compare_value(subject, "lock", "free for others while held", False, _is_free(folder))
    lock.release()
    yield compare_value(subject, "lock", "free for others afterwards", True, _is_free(folder))
    created = folder.with_name("created")
    created.mkdir()
    DirectoryLock(created).release()
    mode = stat.S_IMODE((created / FILE).stat().st_mode)
    yield compare_value(subject, "lock", "mode", oct(mode & 0o644), oct(mode))
    for text in ("x" * 300, ""):
        (folder / FILE).write_text(text)
        _locked(folder)
        named = (folder / FILE).read_text().split()[:1]
        yield compare_value(subject, "lock", f"holder after {len(text)} characters", ["process"], named)


def _is_free(folder: Path) -> bool:
    """Whether another process could take the lock."""
    tried = subprocess.run([sys.executable, "-S", "-c", TRY, str(folder / FILE)], stderr=subprocess.DEVNULL)
    return tried.returncode == 0


def _locked(folder: Path) -> tuple[str, str]:
    """What the refusal names and found; the lock is let go again."""
    try:
        DirectoryLock(folder).release()
    except InputError as error:
        return error.field or "?", str(error.found)
    return "", ""
