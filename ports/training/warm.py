"""``--from-checkpoint``: a run that begins with the weights of a draft of the same verifier, vocabulary and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ports.errors import InputError
from ports.training.checkpoint import WEIGHTS, check_checkpoint
from ports.training.draft_config import native_config, read_config_dict
from ports.training.saving import LENT, put_weights, read_weights
from ports.training.vocabulary import VOCABULARY_KEY
from ports.verifier.config import verifier_config
from ports.verifier.fingerprint import verifier_fingerprint

AUX = "eagle_aux_hidden_state_layer_ids"
LAYER = "transformer_layer_config"

NEUTRAL = frozenset(
    {"architectures", "attention_dropout", "auto_map", "bos_token_id", "dtype", "embed_requires_grad", "eos_token_id"}
    | {"initializer_range", "max_position_embeddings", "pad_token_id", "pretraining_tp", "speculators_config"}
    | {"speculators_version", "target_hidden_size", "tie_word_embeddings", "torch_dtype", "transformers_version"}
    | {"ttt_alignment", "use_cache", VOCABULARY_KEY}
)
"""Entries of a draft's config that no logit depends on, or that are looked at by themselves."""


def start_from(draft: Any, directory: Path) -> str:
    """Put the weights of the checkpoint in ``directory`` into ``draft``; returns a line that says what was taken.

    Raises:
        InputError: no Speculators checkpoint, of another algorithm, verifier, vocabulary map, sizes or other values
            that its logits depend on, or with tensors that are missing, left over or not finite.
    """
    check_checkpoint(directory, "from_checkpoint")
    own, file = draft.config, directory / "config.json"
    source = {"speculators_model_type": "nothing", **read_config_dict(str(directory))}
    config = native_config(str(file), source, own.speculators_model_type)
    verifier = own.speculators_config.verifier.name_or_path
    _check_verifier(file, config.speculators_config, verifier)
    theirs, ours = config.to_dict(), own.to_dict()
    if AUX in theirs and theirs[AUX] is None:  # Speculators' own rule
        count = verifier_config(verifier).num_hidden_layers
        theirs[AUX] = [2, count // 2, count - 3]
    for name, found, expected in _apart(theirs, ours):
        raise InputError(file, name, found, f"{expected}, this run's")
    weights = read_weights(directory / WEIGHTS)
    put_weights(draft, directory / WEIGHTS, weights, LENT)
    count = sum(value.numel() for value in weights.values() if value.is_floating_point())
    said = f", which says {own.draft_vocab_size:,} tokens" if "t2d" in weights else ""
    return (
        f"starting from the weights of {directory}{said}: {len(weights)} tensors, {count:,} numbers; Adam starts anew"
    )


def _check_verifier(file: Path, attached: Any, own: str) -> None:
    """Refuse (InputError) a draft of another verifier; one that was moved or copied is the same."""
    named = attached.verifier.name_or_path if attached is not None else None
    if named == own:
        return
    if named is None or (Path(named).is_absolute() and not Path(named).exists()):
        raise InputError(file, "verifier", named or "nothing", f"one that is there, to be held against {own}")
    if verifier_fingerprint(named) != verifier_fingerprint(own):
        raise InputError(file, "verifier", named, f"{own}, this run's, or a copy of it")


def _apart(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Entries that differ, those of the layer after the others."""
    for name in sorted({*theirs, *ours} - NEUTRAL, key=lambda each: (each == LAYER, each)):
        one, other = theirs.get(name), ours.get(name)
        if name == LAYER:
            yield from _apart(one or {}, other or {})
        elif one != other and not name.startswith("_"):
            yield name, one, other
