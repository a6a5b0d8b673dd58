"""How a verifier's last state becomes logits: its own final norm, its head, and whatever its class does after the head.

Nothing of that is written here. transformers' model of the verifier's class is made without memory (on ``meta``), its
layers are taken out to see which module gives ``last_hidden_state``, and its own forward is run on states that are put
in the place of its backbone's. So scales, caps and biases are the model's own.

Shapes: h hidden size, V the verifier's vocabulary, N rows asked for, all V by default.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from ports.errors import InputError, reason
from ports.verifier.config import full_config
from ports.verifier.loading import backbone, check_norm, check_tensor, read_parameters
from ports.verifier.trust import opening, trusts_remote_code
from ports.verifier.weights import reading_weights

PROBES = 4
"""Random states that a head is tried on."""

LOUD = (1.0, 1e3)
"""Their sizes: a cap shows in large logits alone."""


class VerifierHead:
    """From states [..., h] after the final norm to logits [..., N], without gradient, as the verifier's class does it.

    ``weight`` [N, h] is the head's own, ``norm`` the final norm for states [..., h] before it (in the precision of its
    weights in the checkpoint), and ``is_linear`` says whether the logits are the product with ``weight`` and nothing
    else, to the bit.
    """

    def __init__(self, name_or_path: str, model: Any, norm: nn.Module, head: nn.Module) -> None:
        self.name, self.model, self._final, self._head = name_or_path, model, norm, head
        self._given = next(part for part in model.modules() if isinstance(part, _Given))
        self.is_linear = self._is_linear()

    @classmethod
    def load(cls, name_or_path: str, rows: Tensor | None = None, dtype: torch.dtype = torch.float32) -> VerifierHead:
        """The head of the verifier at ``name_or_path``, a directory or hub id, on the CPU in ``dtype``.

        Args:
            rows: [N] int64 ids or [V] bool: the tokens that logits are asked for. Default: all.

        Raises:
            InputError: weights that are missing, zero or not finite, by name; a verifier of a class in which this
                cannot be done.
        """
        model, norm = _skeleton(name_or_path)
        with reading_weights(name_or_path):
            final = _filled(name_or_path, model, norm, None)
            head = _filled(name_or_path, model, model.get_output_embeddings(), dtype)
        whole = cls(name_or_path, _without_backbone(name_or_path, model), final, head)
        return whole if rows is None else whole._only(rows)

    @property
    def weight(self) -> Tensor:
        """[N, h]."""
        weight: Any = self._head.weight
        return weight.detach()

    @torch.no_grad()
    def __call__(self, last_state: Tensor) -> Tensor:
        """Logits [..., N] float32 (float64 of a head in it) of the last state [..., h] after the norm."""
        with torch.autocast(last_state.device.type, enabled=False):
            states = last_state.to(self.weight.dtype).reshape(1, -1, last_state.shape[-1])
            logits: Tensor = self._forward(states)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return wide.view(*last_state.shape[:-1], wide.shape[-1])

    @torch.no_grad()
    def norm(self, state: Tensor) -> Tensor:
        """States [..., h] after the final norm, of states before it."""
        return applied(self._final, state)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.weight.device

    def to(self, device: torch.device | str) -> VerifierHead:
        """Moved there."""
        self.model.to(device)
        self._final.to(device)
        return self

    def _forward(self, states: Tensor) -> Tensor:
        self._given.states = states
        try:
            logits: Tensor = self.model(inputs_embeds=states, use_cache=False).logits
        finally:
            self._given.states = None
        return logits

    def _only(self, rows: Tensor) -> VerifierHead:
        """With those rows of the head alone; refused where the class does more to logits than each by itself."""
        probe, head = self._probe(1.0), self._head
        wanted = self._tried(probe)[..., rows]
        for name, value in list(head.named_parameters(recurse=False)):
            setattr(head, name, nn.Parameter(value.detach()[rows], requires_grad=False))
        fewer = VerifierHead(self.name, self.model, self._final, head)
        given = fewer._tried(probe)
        if given.shape != wanted.shape or not torch.allclose(given, wanted, rtol=1e-3, atol=1e-3):
            raise _unknown(self.name, self.model, "logits that hang together", "each token's logit for itself")
        return fewer

    def _probe(self, size: float) -> Tensor:
        generator, weight = torch.Generator().manual_seed(0), self.weight
        states = torch.randn(1, PROBES, weight.shape[1], generator=generator) * size
        return states.to(weight.device, weight.dtype)

    def _tried(self, states: Tensor) -> Tensor:
        try:
            logits = self(states)
        except Exception as error:  # whatever a class's forward wants that a state is not
            raise _unknown(self.name, self.model, reason(error), "logits of its last state alone") from error
        if logits.shape != (1, PROBES, len(self.weight)) or not bool(logits.isfinite().all()):
            raise _unknown(
                self.name, self.model, f"logits {tuple(logits.shape)}", f"finite ones of {len(self.weight)} tokens"
            )
        return logits

    def _is_linear(self) -> bool:
        probes = [self._probe(size) for size in LOUD]
        return all(torch.equal(self._tried(states), F.linear(states, self.weight).float()) for states in probes)


def final_norm(name_or_path: str) -> nn.Module:
    """The verifier's own final norm, in the precision of its weights; see :func:`applied`.

    Raises:
        InputError: as :meth:`VerifierHead.load`.
    """
    model, norm = _skeleton(name_or_path)
    with reading_weights(name_or_path):
        return _filled(name_or_path, model, norm, None)


@torch.no_grad()
def applied(norm: nn.Module, state: Tensor) -> Tensor:
    """``norm`` of states [..., h], which are brought to the precision of its weights."""
    weight = next(norm.parameters(), None)
    normed: Tensor = norm(state if weight is None else state.to(weight.dtype))
    return normed


def check_ends(name_or_path: str) -> None:
    """Refuse a verifier whose embedding, final norm or head is missing, zero or not finite, before any is copied.

    Raises:
        InputError: as :meth:`VerifierHead.load`.
    """
    model, norm = _skeleton(name_or_path)
    with reading_weights(name_or_path):
        for module in (model.get_input_embeddings(), norm, model.get_output_embeddings()):
            _filled(name_or_path, model, module, None)


class _Given(nn.Module):
    """Stands where the backbone stood, and gives the ``states`` [1, n, h] that it is told to."""

    states: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Any:
        return _Output(self.states)


class _Nothing(nn.Module):
    """Stands where rotary embeddings stood: without layers nobody reads them."""

    def forward(self, *_: Any, **__: Any) -> None:
        return None


@dataclass
class _Output:
    """What a backbone gives: nothing but its last state, by name or as the first of all."""

    last_hidden_state: Tensor | None

    def __getitem__(self, _: int) -> Tensor | None:
        return self.last_hidden_state

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _unknown(name_or_path: str, model: Any, found: str, expected: str) -> InputError:
    return InputError(name_or_path, type(model).__name__, found, f"a verifier whose class gives {expected}")


def _skeleton(name_or_path: str) -> tuple[Any, nn.Module]:
    """The verifier's model without memory and without layers, and which of its modules is the final norm."""
    config = copy.deepcopy(full_config(name_or_path))
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # norm and head are in the precision of the others
    key = type(config), repr({**config.to_dict(), "_name_or_path": None})
    if key not in _SKELETONS:
        with opening(name_or_path, "architectures", "a causal language model"), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trusts_remote_code())
        made = model.eval(), _find_norm(name_or_path, model)
        _SKELETONS.clear()
        _SKELETONS[key] = made
    return copy.deepcopy(_SKELETONS[key])


_SKELETONS: dict[tuple[type, str], tuple[Any, nn.Module]] = {}
"""The last one, by its config: a run asks for the same one several times, and fills in a copy of it."""


def _find_norm(name_or_path: str, model: Any) -> nn.Module:
    """The module whose output is the ``last_hidden_state`` of a backbone without layers, which it leaves without."""
    decoder, given = model.get_decoder(), list[tuple[nn.Module, Any]]()
    decoder = getattr(model, backbone(model) or "", model) if decoder is model else decoder
    config = decoder.config.get_text_config()
    layers = {name: part for name, part in decoder.named_children() if isinstance(part, nn.ModuleList)}
    turning = {name: part for name, part in decoder.named_children() if "rotary" in name}  # some read their positions
    hooks = [
        part.register_forward_hook(lambda module, _, out: given.append((module, out))) for part in decoder.modules()
    ]
    try:
        for name in layers:
            setattr(decoder, name, nn.ModuleList())
        for name in turning:
            setattr(decoder, name, _Nothing())
        with torch.device("meta"):
            state = torch.empty(1, 2, config.hidden_size, dtype=decoder.dtype)
            mask = torch.empty(1, 1, 2, 2, dtype=decoder.dtype)  # made already, so that nobody looks into it
            last = decoder(inputs_embeds=state, attention_mask=mask, use_cache=False).last_hidden_state
    except Exception as error:  # a forward that needs more than states
        raise _unknown(name_or_path, model, reason(error), "its final norm to see") from error
    finally:
        for hook in hooks:
            hook.remove()
        for name, part in turning.items():
            setattr(decoder, name, part)
    norms = [module for module, out in given if out is last and module is not decoder]
    if not norms:
        raise _unknown(name_or_path, model, "no module", "its last hidden state by a final norm")
    return norms[-1]


def _filled(name_or_path: str, model: Any, module: Any, dtype: torch.dtype | None) -> Any:
    """``module``, which has no modules of its own, with its weights from the checkpoint, in ``dtype`` or theirs."""
    prefix = next(name for name, part in model.named_modules() if part is module)
    wanted = {f"{prefix}.{name}": name for name, _ in module.named_parameters()}
    for name, value in read_parameters(name_or_path, model, list(wanted)).items():
        check_tensor(name_or_path, name, value)
        kept = value if dtype is None else value.to(dtype)
        setattr(module, wanted[name], nn.Parameter(kept, requires_grad=False))
    check_norm(name_or_path, prefix, module)
    return module


def _without_backbone(name_or_path: str, model: Any) -> Any:
    prefix = backbone(model)
    if prefix is None:
        raise _unknown(name_or_path, model, "no backbone", "logits of a backbone's last state")
    setattr(model, prefix, _Given())
    return model
