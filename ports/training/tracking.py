"""Metrics to a JSON-lines file, as one of accelerate's trackers."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from ports.training.checkpoint import Digest, write_file

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

    @property
    def tracker(self) -> Path:
        return self.file

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._settings = values

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        self._open()
        self._digest.update(line)
        self._stream.write(line)
        self._stream.flush()

    def _open(self) -> None:
        if self._stream is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            settings = json.dumps(self._settings, indent=1, sort_keys=True) + "\n"
            write_file(self.file.with_name(SETTINGS), settings.encode())
            write_file(self.file, self.kept)
            self._stream, self._digest = self.file.open("ab"), hashlib.sha256(self.kept)

    def written(self) -> Digest:
        """Of what was logged so far, which is on the disk when this returns."""
        self._open()
        os.fsync(self._stream.fileno())
        return Digest(bytes=self._stream.tell(), sha256=self._digest.hexdigest())

    @on_main_process
    def finish(self) -> None:
        self._open()
        self._stream.close()
