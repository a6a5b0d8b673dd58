"""What to run: everything the child process needs, as one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from parity.errors import InputError

DTYPES = {"eagle3": ("fp32", "bf16", "bf16ds"), "hass": ("fp32", "bf16")}
"""Per algorithm: pure float32, accelerate's bf16 autocast, and bf16 under DeepSpeed ZeRO-2.

Eagle3 in ``bf16`` is allowed because it is a known deviation: the script stops with a dtype error.
"""

Count = Annotated[int, Field(ge=1)]
Folder = Annotated[Path, Field(strict=False)]
"""JSON has a word where Python has a path."""


class OriginalRequest(BaseModel):
    """One run of a prototype's training script.

    ``prototype`` is the root of the checkout, ``fixture`` a folder with ``verifier/``, ``draft_<algorithm>.json``,
    ``data_<algorithm>/``, ``t2d.npy`` and ``d2t.npy``. The recording goes to ``output / case``.

    ``seed`` is applied once, when ``accelerator.prepare`` has returned; without it the script's own seeding stands.
    ``initial_weights`` is a safetensors file of ``init.<name>`` that replaces the constructed parameters.
    ``redirect`` names a module whose ``Model`` and ``EConfig`` take the place of the prototype's.
    ``max_optimizer_steps`` ends the run early. Without ``record`` only ``meta.json`` with the timings is written.

    Raises:
        InputError: names the field that does not fit, what was found and what was expected.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prototype: Folder
    fixture: Folder
    output: Folder
    case: str
    algorithm: Literal["eagle3", "hass"] = "eagle3"
    dtype: Literal["fp32", "bf16", "bf16ds"] = "fp32"
    lr: float = 1e-3
    bs: Count = 2
    gradient_accumulation_steps: Count = 1
    epoch: int = 4
    topk: int = 10
    topk_w: float = 0.0
    forward_num_total: Count = 3
    noise: bool = False
    shuffle: bool = False
    seed: int | None = None
    initial_weights: Folder | None = None
    threads: Count = 1
    redirect: str | None = None
    max_optimizer_steps: Count | None = None
    record: bool = True
    count_flops: bool = False

    def __init__(self, source: str = "request", **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "dtype"
            found = "nothing" if first["type"] == "missing" else repr(values.get(field))[:80]
            raise InputError(source, field, found, first["msg"]) from error

    @field_validator("case")
    @classmethod
    def _plain_name(cls, case: str) -> str:
        if not case or Path(case).name != case:
            raise ValueError("a plain folder name is expected")
        return case

    @model_validator(mode="after")
    def _known_dtype(self) -> OriginalRequest:
        if self.dtype not in DTYPES[self.algorithm]:
            raise ValueError(f"dtype {self.dtype}: {self.algorithm} has {', '.join(DTYPES[self.algorithm])}")
        return self

    @property
    def folder(self) -> Path:
        """Where the recording goes."""
        return self.output / self.case

    @property
    def draft_config(self) -> Path:
        """The draft's configuration file."""
        return self.fixture / f"draft_{self.algorithm}.json"

    @property
    def data(self) -> Path:
        """The folder of sample files."""
        return self.fixture / f"data_{self.algorithm}"

    @property
    def verifier(self) -> Path:
        """The folder of the verifier's configuration and weights."""
        return self.fixture / "verifier"

    def absolute(self) -> OriginalRequest:
        """The same request with absolute paths: the child works in another directory."""
        paths = {name: value.resolve() for name, value in self if isinstance(value, Path)}
        return self.model_copy(update=paths)

    @classmethod
    def from_json(cls, text: str, source: str = "request") -> OriginalRequest:
        """Read a request back; unknown, missing and wrongly typed fields are :class:`InputError`."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(source, "file", str(error), "a JSON object") from error
        if not isinstance(values, dict):
            raise InputError(source, "file", type(values).__name__, "a JSON object")
        return cls(source=source, **values)
