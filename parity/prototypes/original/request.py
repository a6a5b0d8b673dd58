"""What to run: everything the child process needs, as one JSON object."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from parity.errors import InputError

DTYPES = {"eagle3": ("fp32", "bf16", "bf16ds"), "hass": ("fp32", "bf16")}
"""Per algorithm: pure float32, accelerate's bf16 autocast, and bf16 under DeepSpeed ZeRO-2.

Eagle3 in ``bf16`` is allowed because it is a known deviation: the script stops with a dtype error.
"""


@dataclass(frozen=True)
class OriginalRequest:
    """One run of a prototype's training script.

    ``prototype`` is the root of the checkout, ``fixture`` a folder with ``verifier/``, ``draft_<algorithm>.json``,
    ``data_<algorithm>/``, ``t2d.npy`` and ``d2t.npy``. The recording goes to ``output / case``.

    ``seed`` is applied once, when ``accelerator.prepare`` has returned; without it the script's own seeding stands.
    ``initial_weights`` is a safetensors file of ``init.<name>`` that replaces the constructed parameters.
    ``redirect`` names a module whose ``Model`` and ``EConfig`` take the place of the prototype's.
    ``max_optimizer_steps`` ends the run early. Without ``record`` only ``meta.json`` with the timings is written.
    """

    prototype: Path
    fixture: Path
    output: Path
    case: str
    algorithm: str = "eagle3"
    dtype: str = "fp32"
    lr: float = 1e-3
    bs: int = 2
    gradient_accumulation_steps: int = 1
    epoch: int = 4
    topk: int = 10
    topk_w: float = 0.0
    forward_num_total: int = 3
    noise: bool = False
    shuffle: bool = False
    seed: int | None = None
    initial_weights: Path | None = None
    threads: int = 1
    redirect: str | None = None
    max_optimizer_steps: int | None = None
    record: bool = True
    count_flops: bool = False

    def __post_init__(self) -> None:
        _check_choice("algorithm", self.algorithm, tuple(DTYPES))
        _check_choice("dtype", self.dtype, DTYPES[self.algorithm])
        for name in ("bs", "gradient_accumulation_steps", "forward_num_total", "threads"):
            _check_positive(name, getattr(self, name))
        if self.max_optimizer_steps is not None:
            _check_positive("max_optimizer_steps", self.max_optimizer_steps)
        if not self.case or Path(self.case).name != self.case:
            raise InputError("request", "case", repr(self.case), "a plain folder name")

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

    def to_json(self) -> str:
        """The text that :meth:`from_json` reads."""
        return json.dumps(asdict(self), indent=1, default=str)

    @classmethod
    def from_json(cls, text: str, source: str = "request") -> OriginalRequest:
        """Read a request back; unknown, missing and wrongly typed fields are :class:`InputError`."""
        values = _parse_object(text, source)
        hints = typing.get_type_hints(cls)
        for name in values:
            if name not in hints:
                raise InputError(source, name, "an unknown field", f"one of {sorted(hints)}")
        for field in fields(cls)[:4]:
            if field.name not in values:
                raise InputError(source, field.name, "nothing", _spell(hints[field.name]))
        return cls(**{name: _convert(source, name, value, hints[name]) for name, value in values.items()})


def _parse_object(text: str, source: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(source, "file", str(error), "a JSON object") from error
    if not isinstance(values, dict):
        raise InputError(source, "file", type(values).__name__, "a JSON object")
    return values


def _convert(source: str, name: str, value: Any, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(source, name, repr(value), _spell(hint))
    return value


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _check_choice(name: str, found: str, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        raise InputError("request", name, repr(found), f"one of {', '.join(allowed)}")


def _check_positive(name: str, found: int) -> None:
    if found < 1:
        raise InputError("request", name, found, "at least 1")
