"""Metrics to a JSON-lines file, as one of accelerate's trackers."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from ports.errors import InputError
from ports.training.checkpoint import write_file

SETTINGS = "settings.json"


class JsonLinesTracker(GeneralTracker):
    """Appends one JSON object per logged step to ``metrics.jsonl``, floats at full precision.

    ``kept`` are a resumed run's lines. They and :data:`SETTINGS` take the place of what lies there with the first line
    or save, or at the end: until then the run may yet be refused.
    """

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.kept = file, b""
        self._settings: dict[str, Any] = {}
        self._stream: Any = None
        self._digest = hashlib.sha256()

    @property
    def tracker(self) -> Path:
        return self.file

    @on_main_process
    def start(self) -> None:
        self._digest.update(self.kept)

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._settings = values

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        self._digest.update(line)
        self._open()
        try:
            self._stream.write(line)
            self._stream.flush()
        except OSError as error:
            raise InputError(self.file, "metrics", str(error), "room and permission to write") from error

    def _open(self) -> None:
        if self._stream is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            settings = json.dumps(self._settings, indent=1, sort_keys=True) + "\n"
            write_file(self.file.with_name(SETTINGS), settings.encode())
            write_file(self.file, self.kept)
            self._stream = self.file.open("ab")

    def written(self) -> tuple[int, str]:
        """Bytes logged so far and their sha256; they are on the disk when this returns."""
        self._open()
        os.fsync(self._stream.fileno())
        return self._stream.tell(), self._digest.hexdigest()

    @on_main_process
    def finish(self) -> None:
        self._open()
        self._stream.close()
