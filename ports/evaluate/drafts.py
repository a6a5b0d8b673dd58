"""Open the draft of a checkpoint with its verifier, trained or as its training started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from speculators import SpeculatorModel
from speculators.models.eagle3 import Eagle3DraftModel

from ports.eagle3.config import OTHER_NORMS
from ports.eagle3.model import build_draft
from ports.errors import InputError
from ports.evaluate.drafter import Drafter, Eagle3Drafter, HassDrafter
from ports.hass import HassDraftModel
from ports.training.alignment import Alignment
from ports.training.draft_config import native_config, read_config_dict
from ports.training.saving import load_weights
from ports.training.verifier import check_weights_present, reading_weights, verifier_config
from ports.training.vocabulary import VocabularyMap

KINDS: dict[str, type[Drafter]] = {"eagle3": Eagle3Drafter, "hass": HassDrafter}


def drafter_of(model: SpeculatorModel) -> Drafter:
    """The drafter of an Eagle3 or HASS model."""
    return KINDS[model.config.speculators_model_type](model)


def open_draft(directory: Path, verifier: str | None = None) -> SpeculatorModel:
    """The model in a checkpoint directory, every one of its tensors read from there or from the verifier.

    Args:
        directory: of a Speculators checkpoint.
        verifier: directory or hub id; default: the one that the checkpoint names.

    Raises:
        InputError: no checkpoint of a kind that is known here, tensors missing, or no verifier at that place.
    """
    config = _config(directory)
    if verifier is not None:
        config.speculators_config.verifier.name_or_path = verifier
    _check_named(directory, config.speculators_config.verifier.name_or_path)
    _check_verifier(config)
    with reading_weights(config.speculators_config.verifier.name_or_path):
        model = _load(directory, config)
    load_weights(model, directory)
    return model.eval()


def untrained(model: SpeculatorModel, seed: int = 0) -> SpeculatorModel:
    """A draft of the same config, vocabulary map and verifier with the weights that training starts from."""
    torch.manual_seed(seed)
    config = model.config.__class__.from_dict(model.config.to_dict())
    if isinstance(model, Eagle3DraftModel):
        return build_draft(config, VocabularyMap(model.t2d, model.d2t), Alignment.PROTOTYPE).eval()
    fresh = HassDraftModel(config)
    fresh.load_verifier_weights()
    return fresh.eval()


def _config(directory: Path) -> Any:
    if not (directory / "config.json").is_file():
        raise InputError(directory, "DRAFT", "no config.json", "a Speculators checkpoint directory")
    source = read_config_dict(str(directory))
    kind = source.get("speculators_model_type")
    if kind not in KINDS:
        raise InputError(directory / "config.json", "speculators_model_type", kind, " or ".join(KINDS))
    config = native_config(str(directory), source, kind)
    _check_computed(directory, config)
    if config.speculators_config is None:
        raise InputError(directory / "config.json", "speculators_config", "nothing", "the verifier's name")
    return config


def _check_computed(directory: Path, config: Any) -> None:
    """Refuse what Speculators' Eagle3 can compute and this evaluation does not."""
    found = [name for name in OTHER_NORMS if getattr(config, name, False)]
    if found:
        raise InputError(directory / "config.json", found[0], True, "false: only the ports' own drafts are evaluated")


def _check_named(directory: Path, name: str | None) -> None:
    """A verifier is named, and if it is named by a place then it is still there."""
    if name is None or (Path(name).is_absolute() and not Path(name).exists()):
        raise InputError(directory / "config.json", "verifier", name or "nothing", "one that is there: --verifier")


def _check_verifier(config: Any) -> None:
    name = config.speculators_config.verifier.name_or_path
    verifier, layer = verifier_config(name), config.transformer_layer_config
    check_weights_present(name)
    for size in ("hidden_size", "vocab_size"):
        if getattr(verifier, size) != getattr(layer, size):
            raise InputError(name, size, getattr(verifier, size), f"{getattr(layer, size)}, the draft's")


def _load(directory: Path, config: Any) -> SpeculatorModel:
    return SpeculatorModel.from_pretrained(directory, config=config, dtype=torch.float32)
