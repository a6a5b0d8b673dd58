"""One run a directory: a lock that the operating system gives back when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

from ports.errors import InputError
from ports.files import check_output

FILE = ".lock"


class DirectoryLock:
    """Holds ``directory`` for this process until :meth:`release`, or until the process ends, however it ends.

    A record lock: a killed holder leaves the file behind but not the lock, and loader processes do not inherit it.

    Raises:
        InputError: it cannot be made or written to, or another process holds it; names that and its machine.
    """

    def __init__(self, directory: Path, field: str = "cpdir") -> None:
        self.field = field
        self._handle: int | None = None
        self.file = directory / FILE
        check_output(directory, field)
        directory.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise self._refusal(error) from error
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _refusal(self, error: OSError) -> InputError:
        holder = os.pread(self._handle or 0, 200, 0).decode(errors="replace").strip() or "an unknown process"
        self.release()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return InputError(self.file, self.field, str(error), "a file system with locks")
        return InputError(self.file, self.field, f"in use by {holder}", "a directory that no other run writes to")

    def release(self, close: Callable[[int], None] = os.close) -> None:
        """Let others in. The file stays: removing it would let two runs hold two files of one name.

        ``close`` is bound here because modules are gone when an interpreter that shuts down calls ``__del__``.
        """
        if self._handle is not None:
            close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.release()
