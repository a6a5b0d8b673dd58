"""Open the draft of a checkpoint with its verifier, trained or as its training started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from speculators import SpeculatorModel
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor

from ports.eagle3.config import OTHER_NORMS
from ports.eagle3.model import build_draft
from ports.errors import InputError
from ports.evaluate.drafter import Drafter, Eagle3Drafter, HassDrafter
from ports.hass import HassDraftModel
from ports.training.alignment import Alignment
from ports.training.checkpoint import WEIGHTS
from ports.training.draft_config import check_builds, native_config, read_config_dict
from ports.training.saving import put_weights, read_weights
from ports.training.verifier import check_weights_present, reading_weights, verifier_config
from ports.training.vocabulary import VocabularyMap, check_map

KINDS: dict[str, type[Drafter]] = {"eagle3": Eagle3Drafter, "hass": HassDrafter}
MODELS: dict[str, type[SpeculatorModel]] = {"eagle3": Eagle3DraftModel, "hass": HassDraftModel}


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
    file = directory / WEIGHTS
    weights = read_weights(file)
    vocabulary = _vocabulary(file, weights, config)
    with reading_weights(config.speculators_config.verifier.name_or_path):
        model = _fresh(config, vocabulary)
    put_weights(model, file, weights)
    return model.eval()


def untrained(model: SpeculatorModel, seed: int = 0) -> SpeculatorModel:
    """A draft of the same config, vocabulary map and verifier with the weights that training starts from."""
    torch.manual_seed(seed)
    config = model.config.__class__.from_dict(model.config.to_dict())
    known: dict[str, Any] = {name: getattr(model, name, None) for name in ("t2d", "d2t")}
    return _fresh(config, VocabularyMap(**known)).eval()


def _fresh(config: Any, vocabulary: VocabularyMap) -> SpeculatorModel:
    """As training starts; HASS has no map."""
    if config.speculators_model_type == "eagle3":
        return build_draft(config, vocabulary, Alignment.PROTOTYPE)
    fresh = HassDraftModel(config)
    fresh.load_verifier_weights()
    return fresh


def _vocabulary(file: Path, weights: Mapping[str, Tensor], config: Any) -> VocabularyMap:
    """The checkpoint's map: an id that the verifier does not have would be met in the middle of an answer."""
    vocab_size = config.transformer_layer_config.vocab_size
    whole: Any = None
    if getattr(config, "draft_vocab_size", vocab_size) == vocab_size:
        return VocabularyMap(whole, whole)
    for name, dtype in (("t2d", torch.bool), ("d2t", torch.int64)):
        found = weights[name].dtype if name in weights else "missing"
        if found is not dtype:
            raise InputError(file, name, found, dtype)
    arrays = weights["t2d"].numpy(), weights["d2t"].numpy()
    return check_map((file, file), arrays, vocab_size, config.draft_vocab_size)


def _config(directory: Path) -> Any:
    if not (directory / "config.json").is_file():
        raise InputError(directory, "DRAFT", "no config.json", "a Speculators checkpoint directory")
    source = read_config_dict(str(directory))
    kind = source.get("speculators_model_type")
    if kind not in KINDS:
        raise InputError(directory / "config.json", "speculators_model_type", kind, " or ".join(KINDS))
    config = native_config(str(directory), source, kind)
    check_builds(directory / "config.json", MODELS[kind], config)
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
