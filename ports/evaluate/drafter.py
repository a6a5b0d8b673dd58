"""Drafts that propose tokens one by one: opened from a checkpoint, and run on a chain of their own outputs.

Shapes: B rows, Q tokens, h hidden size, F width of the features, k size of a proposal, V the verifier's vocabulary, D
the draft's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from speculators import SpeculatorModel
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor, nn

from ports.eagle3.model import build_draft
from ports.errors import InputError
from ports.evaluate.sampling import Choice, Proposal, checked_logits
from ports.evaluate.verifier import Block, KVCache
from ports.hass import HassDraftModel
from ports.training.alignment import Alignment
from ports.training.checkpoint import WEIGHTS, check_checkpoint
from ports.training.draft_config import check_builds, native_config, read_config_dict
from ports.training.saving import LENT, put_weights, read_weights
from ports.training.vocabulary import (
    FILE,
    VocabularyMap,
    check_digest,
    check_map,
    load_vocabulary_map,
    read_vocabulary_file,
)
from ports.verifier.attention import GLOBAL
from ports.verifier.config import verifier_config
from ports.verifier.weights import check_weights_present, reading_weights


class Drafter(ABC):
    """A draft model that reads (token, hidden state) pairs.

    ``kept`` [D] int64 are the verifier's ids of the tokens that it can say; None: all of them, in their order.
    """

    def __init__(self, model: Any, kept: Tensor | None = None) -> None:
        self.kept = kept
        self.model, self.config = model.eval(), model.config.transformer_layer_config
        self.config._attn_implementation = "sdpa"
        windows = getattr(model, "sliding_window_indices", [])
        self.kinds = ["sliding_attention" if place in windows else GLOBAL for place in range(len(model.layers))]

    @abstractmethod
    def features(self, states: Sequence[Tensor]) -> Tensor:
        """[B, Q, F] from the verifier's n+1 hidden states [B, Q, h], the last of them after its final norm."""

    @abstractmethod
    def enter(self, features: Tensor) -> Tensor:
        """The hidden states [B, Q, h] that features stand for."""

    @abstractmethod
    def fuse(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """What the first layer reads, [B, Q, h or 2h]."""

    def leave(self, out: Tensor) -> Tensor:
        """The hidden states [B, Q, h] that the chain goes on with, from the last layer's outputs."""
        return out

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Of the next token, [B, D], after hidden states [B, h]."""

    @torch.no_grad()
    def propose(self, cache: KVCache, block: Block, size: int, choice: Choice) -> Proposal:
        """The ``size`` tokens that the draft chooses after the block; only the block stays in the cache."""
        rows, last = torch.arange(len(block.ids), device=block.ids.device), block.fresh.sum(1) - 1
        hidden = self._run(cache, block.ids, self.enter(block.features), block.positions, block.fresh)[rows, last]
        position, written, picked = block.positions[rows, last], cache.slots, [self._pick(hidden, choice)]
        for step in range(1, size):
            token, where = picked[-1][0][:, None], position[:, None] + step
            hidden = self._run(cache, token, hidden[:, None], where, torch.ones_like(token, dtype=torch.bool))[:, 0]
            picked.append(self._pick(hidden, choice))
        cache.crop(written)
        tokens, weights = zip(*picked)
        return Proposal(torch.stack(tokens, 1), None if weights[0] is None else torch.stack(weights, 1))

    def _pick(self, hidden: Tensor, choice: Choice) -> tuple[Tensor, Tensor | None]:
        """Verifier ids [B] after hidden states [B, h], and what they were drawn from, [B, V]: 0 on tokens not kept."""
        tokens, weights = choice.pick(checked_logits(self.logits(hidden), "draft"))
        if self.kept is None:
            return tokens, weights
        if weights is not None:
            weights = weights.new_zeros(len(tokens), self.config.vocab_size).index_copy(1, self.kept, weights)
        return self.kept[tokens], weights

    def _run(self, cache: KVCache, ids: Tensor, hidden: Tensor, positions: Tensor, fresh: Tensor) -> Tensor:
        """The next hidden states [B, Q, h]."""
        cache.append(fresh, positions)
        out = self.fuse(ids, hidden)
        rotary = self.model.rotary_emb(out, positions)
        masks = {kind: cache.mask(ids.shape[1], kind, self.config, out.dtype) for kind in set(self.kinds)}
        for layer, kind in zip(self.model.layers, self.kinds):
            out = layer(
                out, attention_mask=masks[kind], past_key_values=cache.past_key_values, position_embeddings=rotary
            )
        return self.leave(out)


class Eagle3Drafter(Drafter):
    """Speculators' Eagle3 draft, EAGLE-3.1's norms included: features of several layers, a vocabulary of its own."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, None if model.t2d is None else model.t2d.nonzero()[:, 0])

    def features(self, states: Sequence[Tensor]) -> Tensor:
        return torch.cat([states[layer] for layer in self.model.config.eagle_aux_hidden_state_layer_ids], dim=-1)

    def enter(self, features: Tensor) -> Tensor:
        model, features = self.model, features.to(self.model.fc.weight.dtype)
        if model.input_norm is not None:
            features = model.input_norm(features)
        if model.fc_norm is not None:
            parts = zip(model.fc_norm, features.chunk(len(model.fc_norm), dim=-1))
            features = torch.cat([norm(part) for norm, part in parts], dim=-1)
        hidden: Tensor = model.fc(features)
        return hidden

    def fuse(self, ids: Tensor, hidden: Tensor) -> Tensor:
        return torch.cat([self.model.embed_tokens(ids).to(hidden.dtype), hidden], dim=-1)

    def leave(self, out: Tensor) -> Tensor:
        return self.model.norm(out) if self.model.config.norm_output else out

    def logits(self, hidden: Tensor) -> Tensor:
        normed = hidden if self.model.config.norm_output else self.model.norm(hidden)
        said: Tensor = self.model.lm_head(normed)
        return said


class HassDrafter(Drafter):
    """The HASS draft: the verifier's last hidden state, the verifier's vocabulary and head, or ``kept`` rows of it."""

    def __init__(self, model: Any, kept: Tensor | None = None) -> None:
        super().__init__(model, kept)
        self.head = model.lm_head.weight if kept is None else model.lm_head.weight[kept]

    def features(self, states: Sequence[Tensor]) -> Tensor:
        return states[-1]

    def enter(self, features: Tensor) -> Tensor:
        return features.to(self.model.fc.weight.dtype)

    def fuse(self, ids: Tensor, hidden: Tensor) -> Tensor:
        embeds = self.model.embed(ids).to(hidden.dtype)
        fused: Tensor = self.model.fc(torch.cat([embeds, self.model.hidden_layernorm(hidden)], dim=-1))
        return fused

    def logits(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(self.model.lm_head_layernorm(hidden), self.head)


KINDS: dict[str, tuple[type[Drafter], type[SpeculatorModel]]] = {
    "eagle3": (Eagle3Drafter, Eagle3DraftModel),
    "hass": (HassDrafter, HassDraftModel),
}
"""By ``speculators_model_type``."""


def as_served(model: SpeculatorModel, verifier: Any) -> SpeculatorModel:
    """The draft in the verifier's precision and place, as a server runs it: rotary frequencies stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(verifier.dtype)
    return model.to(verifier.device)


def drafter_of(model: SpeculatorModel, vocabulary: VocabularyMap | None = None) -> Drafter:
    """The drafter of an Eagle3 or HASS model; a ``vocabulary`` of :func:`read_vocabulary` limits the latter."""
    if vocabulary is not None:
        return HassDrafter(model, vocabulary.t2d.nonzero()[:, 0].to(model.device))
    return KINDS[model.config.speculators_model_type][0](model)


def read_vocabulary(folder: Path, model: SpeculatorModel) -> VocabularyMap:
    """What ``speculator vocabulary`` wrote into ``folder``: the tokens that a HASS draft proposes from.

    The prototype has no such thing: its draft proposes from the verifier's whole vocabulary.

    Raises:
        InputError: not the files of one map with fewer tokens than the verifier, or a draft with a map of its own.
    """
    if not isinstance(model, HassDraftModel):
        raise InputError(folder, "--vocabulary", f"a draft of type {model.config.speculators_model_type}", "hass")
    t2d, size = folder / "t2d.npy", read_vocabulary_file(folder / FILE).draft_vocab_size
    vocab_size = model.config.transformer_layer_config.vocab_size
    if size >= vocab_size:
        raise InputError(folder / FILE, "draft_vocab_size", size, f"fewer than the verifier's {vocab_size}")
    found = load_vocabulary_map(t2d, folder / "d2t.npy", vocab_size, size)
    check_digest(found.digest, t2d, [folder], (str(folder), None))
    return found


def open_draft(directory: Path, verifier: str | None = None) -> SpeculatorModel:
    """The model in a checkpoint directory, every one of its tensors read from there or from the verifier.

    Args:
        directory: of a Speculators checkpoint.
        verifier: directory or hub id; default: the one that the checkpoint names.

    Raises:
        InputError: no checkpoint of a kind that is known here, tensors missing, or no verifier at that place.
    """
    config, file = _read_config(directory, verifier), directory / WEIGHTS
    weights = read_weights(file)
    model = _fresh(config, _vocabulary(file, weights, config))
    put_weights(model, file, weights, LENT)
    return model.eval()


def untrained(model: SpeculatorModel, seed: int = 0) -> SpeculatorModel:
    """A draft of the same config, vocabulary map and verifier with the weights that training starts from."""
    torch.manual_seed(seed)
    known: dict[str, Any] = {name: getattr(model, name, None) for name in ("t2d", "d2t")}
    return _fresh(model.config.__class__.from_dict(model.config.to_dict()), VocabularyMap(**known)).eval()


def _fresh(config: Any, vocabulary: VocabularyMap) -> SpeculatorModel:
    """As training starts; HASS has no map."""
    with reading_weights(config.speculators_config.verifier.name_or_path):
        if config.speculators_model_type == "eagle3":
            return build_draft(config, vocabulary, Alignment.PROTOTYPE)
        fresh = HassDraftModel(config)
        fresh.load_verifier_weights()
        return fresh


def _vocabulary(file: Path, weights: Mapping[str, Tensor], config: Any) -> VocabularyMap:
    """The checkpoint's map: an id that the verifier does not have would be met in the middle of an answer."""
    vocab_size = config.transformer_layer_config.vocab_size
    no_map: Any = None
    if getattr(config, "draft_vocab_size", vocab_size) == vocab_size:
        return VocabularyMap(no_map, no_map)
    for name, dtype in (("t2d", torch.bool), ("d2t", torch.int64)):
        found = weights[name].dtype if name in weights else "missing"
        if found is not dtype:
            raise InputError(file, name, found, dtype)
    arrays = weights["t2d"].numpy(), weights["d2t"].numpy()
    return check_map((file, file), arrays, vocab_size, config.draft_vocab_size)


def _read_config(directory: Path, verifier: str | None) -> Any:
    """The draft's config, attached to a verifier that is there and fits."""
    file = directory / "config.json"
    check_checkpoint(directory, "DRAFT")
    source = read_config_dict(str(directory))
    kind = source.get("speculators_model_type")
    if kind not in tuple(KINDS):  # a file may have anything there
        door = "; EAGLE's and SpecForge's are opened by speculators convert" if kind is None else ""
        raise InputError(file, "speculators_model_type", kind, f"{' or '.join(KINDS)}{door}")
    config = native_config(str(directory), source, kind)
    check_builds(file, KINDS[kind][1], config)
    if config.speculators_config is None:
        raise InputError(file, "speculators_config", "nothing", "the verifier's name")
    named = config.speculators_config.verifier
    named.name_or_path = verifier or _found_again(directory, named.name_or_path)
    _check_verifier(file, config, named.name_or_path)
    return config


def _found_again(draft: Path, name: str | None) -> str | None:
    """Where the verifier is: as the config says, or of that name beside the draft, with which it was moved."""
    beside = draft.resolve().parent / Path(name or "").name
    gone = name is not None and Path(name).is_absolute() and not Path(name).exists()
    return str(beside) if gone and beside != draft.resolve() and (beside / "config.json").is_file() else name


def _check_verifier(file: Path, config: Any, name: str | None) -> None:
    """A verifier is named, is still there if it is named by a place, and has the draft's sizes and feature layers."""
    if name is None or (Path(name).is_absolute() and not Path(name).exists()):
        raise InputError(file, "verifier", name or "nothing", "one that is there: --verifier")
    found, layer = verifier_config(name), config.transformer_layer_config
    check_weights_present(name)
    for size in ("hidden_size", "vocab_size"):
        if getattr(found, size) != getattr(layer, size):
            raise InputError(name, size, getattr(found, size), f"{getattr(layer, size)}, the draft's")
    if config.speculators_model_type == "eagle3":
        if config.target_hidden_size not in (None, layer.hidden_size):
            raise InputError(file, "target_hidden_size", config.target_hidden_size, f"{layer.hidden_size}, hidden_size")
        count = found.num_hidden_layers
        layers = config.eagle_aux_hidden_state_layer_ids or [2, count // 2, count - 3]  # Speculators' own
        if not all(0 <= each <= count for each in layers):
            expected = f"layers of the verifier, which has {count}"
            raise InputError(file, "eagle_aux_hidden_state_layer_ids", layers, expected)
        config.eagle_aux_hidden_state_layer_ids = layers
