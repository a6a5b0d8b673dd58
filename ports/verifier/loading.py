"""A verifier's model from transformers, refused where its weights are not what its config and class say.

transformers fills what a checkpoint lacks with random numbers and goes on; so does vLLM. Whatever reads a verifier
loads it here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file, logging

from ports.errors import InputError
from ports.files import check_regular
from ports.numerics import best_device
from ports.progress import Work
from ports.verifier.config import verifier_config
from ports.verifier.trust import opening, trusts_remote_code
from ports.verifier.weights import INDEX, SINGLE, reading_weights, weight_map

OUTER = frozenset({"model", "language_model", "text_model"})
"""Parts of a tensor's name that come and go with what a text model stands in."""

IGNORED = re.compile(r"rotary_emb\.inv_freq$|(^|\.)mtp(_layers)?\.")
"""Computed buffers that older checkpoints hold, and layers that predict more than the next token."""

NUMBERED = re.compile(r"(?:^|\.)layers\.(\d+)\.")

SHOWN = 3
"""Tensors that a refusal names."""


def load_verifier(
    name_or_path: str,
    dtype: str,
    device: Any = None,
    devices: int = 1,
    head: bool = False,
) -> Any:
    """The verifier in eval mode, with its head or as the backbone alone.

    Args:
        name_or_path: directory or hub id.
        dtype: ``auto`` or a name of torch's.
        device: where it goes; default: the accelerator if there is one.
        devices: that it is spread over, where there are any: all that are visible.
        head: as what gives logits.

    Raises:
        InputError: transformers cannot load it; weights that are missing, nowhere expected, of another shape, zero or
            not finite, by name.
    """
    spread = devices > 1 and torch.accelerator.is_available()
    wanted = {"device_map": "auto"} if spread else {}
    with Work("loading the verifier"):
        model = _loaded(name_or_path, dtype=_named_dtype(name_or_path) if dtype == "auto" else dtype, **wanted)
        for name, value in model.named_parameters():
            check_tensor(name_or_path, name, value)
        for name, module in model.named_modules():
            check_norm(name_or_path, name, module)
        if not head:
            model = getattr(model, backbone(model) or "", model)
        return model.eval() if spread else model.eval().to(device or best_device())


def _named_dtype(name_or_path: str) -> Any:
    """The one in the config, maybe outside of the text model's; auto where it names none, or is refused on loading."""
    try:
        return verifier_config(name_or_path).dtype or "auto"
    except InputError:
        return "auto"


def check_verifier(name_or_path: str) -> None:
    """The same of a verifier that something else will load (vLLM): nothing is kept, every tensor is read once.

    Raises:
        InputError: as :func:`load_verifier`.
    """
    model = _loaded(name_or_path, device_map="meta")
    norms = {bare(name): module for name, module in model.named_modules() if _is_norm(module)}
    with reading_weights(name_or_path):
        for name, value in _tensors(name_or_path):
            check_tensor(name_or_path, name, value)
            norm = norms.get(bare(name.rpartition(".")[0]))
            if norm is not None and not value.any():
                norm.to_empty(device="cpu").load_state_dict({key: torch.zeros_like(value) for key in norm.state_dict()})
                check_norm(name_or_path, name.rpartition(".")[0], norm)


def check_tensor(name_or_path: str, name: str, value: Tensor) -> None:
    """Refuse numbers that are not finite, and a matrix of zeros; biases and zero-centred norms begin as zeros.

    Raises:
        InputError: names the tensor.
    """
    if value.is_meta or not value.is_floating_point() or not value.numel():
        return
    low, high = torch.aminmax(value.detach().float() if value.itemsize == 1 else value.detach())
    if not bool(low.isfinite() & high.isfinite()):
        raise InputError(name_or_path, name, "NaN or infinity", "finite weights")
    if value.dim() > 1 and "bias" not in name and not bool(low) and not bool(high):
        raise InputError(name_or_path, name, "nothing but zeros", "a verifier's weights")


@torch.no_grad()
def check_norm(name_or_path: str, name: str, module: nn.Module) -> None:
    """Refuse a norm of zeros that lets nothing through; Gemma's, which adds 1, does.

    Raises:
        InputError: names its weight.
    """
    weight: Any = module.weight if _is_norm(module) else None
    if weight is None or weight.is_meta or bool(weight.any()):
        return
    states = torch.linspace(-1, 1, weight.numel(), device=weight.device, dtype=weight.dtype).view(weight.shape)
    if not bool(module(states).any()):
        raise InputError(name_or_path, f"{name}.weight", "nothing but zeros", "a norm that lets something through")


def backbone(model: Any) -> str | None:
    """The name of what gives the last state inside a causal language model; Llama 4's has another than it says."""
    own = [name for name, part in model.named_children() if isinstance(part, PreTrainedModel)]
    return next((name for name in own if name == model.base_model_prefix), own[0] if own else None)


def verifier_parameters(name_or_path: str) -> int:
    """Of the verifier that is loaded: the text model, without its head."""
    trust = {"trust_remote_code": trusts_remote_code()}
    with opening(name_or_path, "verifier", "a config of transformers"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name_or_path, **trust), **trust)
    model = getattr(model, backbone(model) or "", model)
    return sum(parameter.numel() for parameter in model.parameters())


def states_bytes(name_or_path: str, item_bytes: int, tokens: int) -> int:
    """Of the hidden states of all layers that a forward over ``tokens`` gives, ``item_bytes`` a number."""
    verifier = verifier_config(name_or_path)
    return item_bytes * (int(verifier.num_hidden_layers) + 1) * int(verifier.hidden_size) * tokens


def bare(name: str) -> str:
    """A tensor's or module's name without what a text model stands in."""
    return ".".join(part for part in name.split(".") if part not in OUTER)


def read_parameters(name_or_path: str, model: Any, names: Iterable[str]) -> dict[str, Tensor]:
    """Parameters of ``model`` by their full names, from the checkpoint, as they lie there.

    A head that is not there is the embedding, if the model's class and config tie the two.

    Raises:
        InputError: one is missing or of another shape, by name.
    """
    places, found = tensor_files(name_or_path), dict[str, Tensor]()
    keys = {bare(key): key for key in sorted(places, key=len, reverse=True)}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name in names:
        key = keys.get(bare(name)) or keys.get(bare(tied.get(name, name)))
        shape = tuple(model.get_parameter(name).shape)
        if key is None:
            raise InputError(name_or_path, name, "missing", f"a tensor {shape} of the verifier's weights")
        with safe_open(_file(name_or_path, places[key]), "pt") as tensors:
            found[name] = tensors.get_tensor(key)
        if found[name].shape != shape:
            raise InputError(name_or_path, name, tuple(found[name].shape), f"{shape}, by the config's sizes")
    return found


def tensor_files(name_or_path: str) -> dict[str, str]:
    """Which file every tensor of the checkpoint is in; of a hub id no more is fetched than that takes."""
    index = cached_file(name_or_path, INDEX, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        return weight_map(Path(index))
    with safe_open(_file(name_or_path, SINGLE), "pt") as tensors:
        return dict.fromkeys(tensors.keys(), SINGLE)


def _file(name_or_path: str, shard: str) -> str:
    check_regular(Path(name_or_path) / shard, "weights")
    return str(cached_file(name_or_path, shard))


def _tensors(name_or_path: str) -> Iterator[tuple[str, Tensor]]:
    for shard in sorted(set(tensor_files(name_or_path).values())):
        with safe_open(_file(name_or_path, shard), "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no iteration)
                yield name, tensors.get_tensor(name)


def _loaded(name_or_path: str, **wanted: Any) -> Any:
    """From transformers, with every name and shape as the class has it."""
    logging.set_verbosity_error()  # what it would report is refused
    load = partial(AutoModelForCausalLM.from_pretrained, output_loading_info=True, ignore_mismatched_sizes=True)
    with opening(name_or_path, "weights", "a model that transformers loads"):
        index = cached_file(name_or_path, INDEX, _raise_exceptions_for_missing_entries=False)
        if index is not None:  # transformers would follow it anywhere
            weight_map(Path(index))
        model, info = load(name_or_path, trust_remote_code=trusts_remote_code(), **wanted)
    _refuse(name_or_path, "missing", info["missing_keys"], "every tensor that its class has")
    shapes = [f"{name} {tuple(found)} (not {tuple(own)})" for name, found, own in info["mismatched_keys"]]
    _refuse(name_or_path, "of another shape", shapes, "the config's sizes")
    _refuse(name_or_path, "unexpected", _unexpected(model, info["unexpected_keys"]), "tensors that its class reads")
    return model


def _refuse(name_or_path: str, what: str, names: Iterable[str], expected: str) -> None:
    listed = sorted(names)
    if listed:
        more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        raise InputError(name_or_path, "weights", f"{', '.join(listed[:SHOWN])}{more} {what}", expected)


def _unexpected(model: Any, names: Iterable[str]) -> list[str]:
    """Without what a text model rightly leaves out: other modalities, layers for further tokens, a quantizer's own."""
    if getattr(model, "hf_quantizer", None) is not None:
        return []
    config = model.config.get_text_config()
    first = getattr(config, "num_hidden_layers", 0)
    further = range(first, first + (getattr(config, "num_nextn_predict_layers", None) or 0))
    known = {bare(name).partition(".")[0] for name, _ in model.named_parameters()}
    text_part = str(model.config.model_type).endswith("_text")  # of something that sees or hears
    kept = []
    for name in names:
        number = NUMBERED.search(name)
        of_others = text_part and bare(name).partition(".")[0] not in known
        if not (IGNORED.search(name) or (number and int(number[1]) in further) or of_others):
            kept.append(name)
    return kept


def _is_norm(module: nn.Module) -> bool:
    kind = "norm" in type(module).__name__.lower() and not list(module.children())
    return kind and isinstance(getattr(module, "weight", None), Tensor)
