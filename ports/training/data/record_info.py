"""What a record says about itself: one JSON object in the metadata of its safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ports.errors import InputError

KEY = "speculator_record"
"""The only key of the metadata: safetensors writes several in no fixed order."""

GENERATION = "generation.json"
"""The file in a directory of records that says what all of them were made from."""

SCHEMA_VERSION = 1
SUFFIX = ".safetensors"


class RecordInfo(BaseModel):
    """Where a record comes from. ``feature_layers`` are entries of ``hidden_states``; empty where there are none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    algorithm: str
    verifier: str
    tokenizer: str
    feature_layers: tuple[int, ...]
    loss_mask: str
    chat_template: str
    row: int

    def as_metadata(self) -> dict[str, str]:
        """What goes into the file."""
        return {KEY: self.model_dump_json()}


def parse_info(file: Path, metadata: dict[str, str] | None) -> RecordInfo:
    """The info in a file's metadata.

    Raises:
        InputError: none, one that is not understood, or one of a newer schema.
    """
    text = (metadata or {}).get(KEY)
    if text is None:
        raise InputError(file, KEY, f"metadata {sorted(metadata or {})}", "a record that speculator-generate wrote")
    try:
        info = RecordInfo.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([KEY, *map(str, first["loc"])])
        raise InputError(file, field, repr(first.get("input"))[:80], first["msg"]) from error
    if not 1 <= info.schema_version <= SCHEMA_VERSION:
        raise InputError(
            file, "schema_version", info.schema_version, f"1..{SCHEMA_VERSION}: written by a newer release"
        )
    return info


def check_same(file: Path, info: RecordInfo, like: RecordInfo, features: bool) -> None:
    """Refuse (InputError) a record of another kind than ``like``; without ``features`` ids and masks alone count."""
    for name in (*(("algorithm", "verifier", "feature_layers") if features else ()), "tokenizer", "loss_mask"):
        found, expected = (_plain(getattr(each, name)) for each in (info, like))
        if found != expected:
            raise InputError(file, name, found, f"{expected}, as of the first record")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def check_features(file: Path, info: RecordInfo, verifier: str, layers: Sequence[int] | None) -> None:
    """Refuse (InputError) features of another verifier, or of other layers than the draft will be served with."""
    if info.verifier != verifier:
        raise InputError(file, "verifier", f"fingerprint {info.verifier}", f"{verifier}, the verifier's at --basepath")
    if layers is not None and list(info.feature_layers) != list(layers):
        expected = f"{list(layers)}, the draft config's eagle_aux_hidden_state_layer_ids"
        raise InputError(file, "feature_layers", list(info.feature_layers), expected)
