"""Metrics to a JSON-lines file, as one of accelerate's trackers."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from ports.errors import InputError


class JsonLinesTracker(GeneralTracker):
    """Appends one JSON object per logged step to ``metrics.jsonl``, floats at full precision.

    ``keep`` bytes of the file, a resumed run's lines, stay as they are. Default: a new file.
    """

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.keep = file, 0
        self._stream: Any = None
        self._digest = hashlib.sha256()

    @property
    def tracker(self) -> Path:
        return self.file

    @on_main_process
    def start(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.file.open("r+b" if self.keep else "w+b")
        self._stream.truncate(self.keep)
        self._digest.update(self._stream.read())

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.file.with_name("settings.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        self._digest.update(line)
        try:
            self._stream.write(line)
            self._stream.flush()
        except OSError as error:
            raise InputError(self.file, "metrics", str(error), "room and permission to write") from error

    def written(self) -> tuple[int, str]:
        """Bytes logged so far and their sha256; they are on the disk when this returns."""
        if self._stream is None:
            return 0, self._digest.hexdigest()
        os.fsync(self._stream.fileno())
        return self._stream.tell(), self._digest.hexdigest()

    @on_main_process
    def finish(self) -> None:
        self._stream.close()
