"""Metrics to a JSON-lines file, as one of accelerate's trackers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process


class JsonLinesTracker(GeneralTracker):
    """Appends one JSON object per logged step to ``metrics.jsonl``, floats at full precision."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self._stream: Any = None

    @property
    def tracker(self) -> Path:
        return self.file

    @on_main_process
    def start(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.file.open("w")

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.file.with_name("settings.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._stream.write(json.dumps({"step": step, **values}) + "\n")
        self._stream.flush()

    @on_main_process
    def finish(self) -> None:
        self._stream.close()
