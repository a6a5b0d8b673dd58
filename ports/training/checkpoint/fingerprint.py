"""What a run depends on: a resumed run must have the same, and says what differs when it has not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ports.errors import InputError
from ports.training.data.record_info import SUFFIX
from ports.training.digests import tensors_digest
from ports.training.settings import TrainingSettings

NEUTRAL = frozenset(
    {"cpdir", "ckpt_path", "progress", "debug", "log_with", "max_steps", "save_steps", "keep_last", "data_num"}
    | {"overwrite", "resume_anyway", "weights_only", "topk_w", "mixed_precision", "prefetch_factor", "report_data_wait"}
    | {"activation_checkpointing"}
)
"""Settings that no number depends on, or whose resolved value is taken instead."""

PATHS = frozenset({"basepath", "configpath", "tmpdir", "t2d", "d2t"})
"""Files may move: what they hold is compared."""

FIXED = frozenset({"algorithm", "draft", "verifier", "vocabulary"})
"""A run with another one of these is another run: not even ``--resume_anyway`` goes on."""

TAIL = 4096
"""A ``*.ckpt`` is a zip archive, whose last bytes list the checksums of everything in it; a ``*.safetensors`` begins
with its header, ids and mask, and is digested from both ends."""

Fingerprint = dict[str, Any]


def fingerprint(settings: TrainingSettings, draft: Any, files: Iterable[Path], world: dict[str, Any]) -> Fingerprint:
    """Settings by name, and digests of the records, the draft's config, the verifier's weights and the vocabulary map.

    Args:
        settings: the run's.
        draft: built, with its verifier's weights in it.
        files: the records in order.
        world: precision, processes and what shards the states.
    """
    plain = {name: value for name, value in settings.as_json().items() if name not in NEUTRAL | PATHS}
    vocabulary = {name: value for name, value in draft.named_buffers() if name in ("t2d", "d2t")}
    frozen = {name: value for name, value in draft.named_parameters() if not value.requires_grad}
    return {
        **plain,
        **world,
        "algorithm": draft.config.speculators_model_type,
        "draft": _digest(json.dumps(_shape(draft), sort_keys=True, default=str).encode()),
        "verifier": tensors_digest(frozen),
        "vocabulary": tensors_digest(vocabulary),
        "records": records_digest(settings.tmpdir, files),
    }


def _shape(draft: Any) -> dict[str, Any]:
    """The draft's config without what names paths and versions."""
    layer = draft.config.transformer_layer_config.to_dict()
    return {name: value for name, value in layer.items() if name not in ("transformers_version", "_name_or_path")}


def records_digest(directory: Path, files: Iterable[Path]) -> str:
    """Names in order, sizes and ends: cheap for 68,000 files, and different for every other content."""
    digest = hashlib.sha256()
    for file in files:
        size, ends = _ends_of(file)
        digest.update(f"{_relative(file, directory)}\0{size}\0".encode() + ends)
    return digest.hexdigest()[:16]


def _ends_of(file: Path) -> tuple[int, bytes]:
    """Size and last bytes; a record that cannot be read, which ``--on_bad_record skip`` allows, has neither."""
    try:
        size = file.stat().st_size
        if not file.is_file():  # a FIFO would be waited for
            return size, b""
        with file.open("rb") as stream:
            head = stream.read(TAIL) if file.suffix == SUFFIX else b""
            stream.seek(max(0, size - TAIL))
            return size, head + stream.read(TAIL)
    except OSError:
        return -1, b""


def _relative(file: Path, directory: Path) -> str:
    return str(file.relative_to(directory)) if file.is_relative_to(directory) else file.name


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def differences(stored: Fingerprint, own: Fingerprint) -> dict[str, str]:
    """``name -> "stored, now own"`` of everything that is not equal."""
    names = sorted(set(stored) | set(own))
    return {
        name: f"{stored.get(name, 'nothing')}, now {own.get(name, 'nothing')}"
        for name in names
        if stored.get(name) != own.get(name)
    }


def check_same(file: Path, stored: Fingerprint, own: Fingerprint, anyway: bool) -> dict[str, str]:
    """Refuse another run, with every difference; returns the differences that ``anyway`` lets pass.

    Raises:
        InputError: something differs and ``anyway`` is off, or something in :data:`FIXED` does.
    """
    found = differences(stored, own)
    fixed = {name: text for name, text in found.items() if name in FIXED}
    if fixed or (found and not anyway):
        listed = "; ".join(f"{name} was {text}" for name, text in (fixed or found).items())
        way_out = "--weights_only starts a new run from its weights"
        if not fixed:
            way_out = f"--resume_anyway goes on with the new values, {way_out}"
        raise InputError(file, "fingerprint", listed, f"the run that was saved; {way_out}")
    return found
