"""The verifier's hidden states on batches of token ids.

Shapes: T tokens of one dialogue, h hidden size, F width of the features (3h for Eagle3, h for HASS).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel
from transformers.utils import logging

from ports.errors import InputError, reason

PROTOTYPE_DTYPE = {"eagle3": "auto", "hass": "float16"}
"""The prototypes' precision of the verifier."""


def load_verifier(name_or_path: str, dtype: str, device: str | None = None, spread: bool = False) -> Any:
    """The verifier without its head, in eval mode.

    Args:
        name_or_path: directory or hub id.
        dtype: ``auto`` or a name of torch's.
        device: where it goes; default: the accelerator if there is one.
        spread: over all visible devices.

    Raises:
        InputError: transformers cannot load it.
    """
    where = device or (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    try:
        with _quiet():
            if spread:
                return AutoModel.from_pretrained(name_or_path, dtype=dtype, device_map="auto").eval()
            return AutoModel.from_pretrained(name_or_path, dtype=dtype).to(where).eval()
    except Exception as error:  # transformers', safetensors' and torch's own
        raise InputError(name_or_path, "model_path", reason(error), "a model that transformers loads") from error


def checked_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: torch has none here, or one that computes nothing.
    """
    expected = "a device that torch has here"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError("command line", "--device", f"{name} ({str(error).splitlines()[0]})", expected) from error
    if device.type == "meta":
        raise InputError("command line", "--device", name, expected)
    return device


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report that the head, which is not wanted, was not loaded."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


class FeatureReader:
    """Gives ``hidden_state`` [T, F] and, with ``layers``, ``target`` [T, h] of dialogues, in the verifier's dtype.

    Args:
        model: the verifier.
        layers: entries of ``hidden_states`` to put side by side (Eagle3); none for HASS, whose features are the last
            entry, after the final norm.
    """

    def __init__(self, model: Any, layers: Sequence[int] | None) -> None:
        self.model, self.layers = model, layers

    @torch.no_grad()
    def __call__(self, dialogues: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """One dict a dialogue; ``dialogues`` are ids [T] int64."""
        lengths = [len(ids) for ids in dialogues]
        states = self._states(dialogues, lengths)
        fields = {"hidden_state": states[-1]}
        if self.layers is not None:
            fused = torch.cat([states[layer].to(states[-1].device) for layer in self.layers], dim=-1)
            fields = {"hidden_state": fused, "target": states[-1]}
        return [{name: value[row, :length] for name, value in fields.items()} for row, length in enumerate(lengths)]

    def _states(self, dialogues: Sequence[Tensor], lengths: list[int]) -> tuple[Tensor, ...]:
        """All n + 1 entries [B, T, h]. Padding is on the right, where no real token looks."""
        padded = pad_sequence(list(dialogues), batch_first=True).to(self.model.device)
        real = torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None]
        mask = None if bool(real.all()) else real.to(self.model.device)
        output = self.model(input_ids=padded, attention_mask=mask, output_hidden_states=True, use_cache=False)
        states: tuple[Tensor, ...] = output.hidden_states
        return states
