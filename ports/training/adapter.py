"""What the stand-ins for the prototypes' ``Model`` and ``EConfig`` share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from speculators import SpeculatorModel
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ports.errors import InputError
from ports.training.attention import ttt_cache
from ports.training.draft_config import read_config_dict
from ports.training.saving import save_draft
from ports.verifier.logits import check_ends
from ports.verifier.tokenizer import tokenizer_files
from ports.verifier.weights import check_weights_present, reading_weights

D = TypeVar("D", bound=SpeculatorModel)

OneStep = Callable[[Tensor, Cache], Tensor]
"""From a step's input [B, T, h] to its output; keys and values go into the cache."""


@dataclass
class EConfig:
    """Where a draft's config lies; it is read and checked when the model is built beside its verifier."""

    configpath: str

    @classmethod
    def from_pretrained(cls, configpath: str) -> EConfig:
        """Raises InputError if there is no JSON object at ``configpath``."""
        read_config_dict(str(configpath))
        return cls(str(configpath))


class PrototypeModel(nn.Module, Generic[D]):
    """A native draft under a prototype's parameter names: subclasses build it, name its submodules and run a step.

    The draft itself is held unregistered, so that no parameter has two names.
    """

    def __init__(self, config: EConfig, load_emb: bool = True, path: str | None = None, ttt_steps: int = 3) -> None:
        """Build the draft of ``config`` for the verifier at ``path``, in the prototype's alignment.

        Args:
            config: the draft's config.
            load_emb: must be true: a draft without its verifier's embedding could not be served.
            path: verifier directory or hub id.
            ttt_steps: how many tokens a checkpoint from :meth:`save_native` proposes.

        Raises:
            InputError: a config, a vocabulary map or a verifier that training would refuse, too.
        """
        super().__init__()
        if path is None or not load_emb:
            raise InputError(config.configpath, "path, load_emb", (path, load_emb), "a verifier and its embedding")
        check_weights_present(path)
        check_ends(path)
        with reading_weights(path):
            draft = self.build(config.configpath, path, ttt_steps)
        self._outside: dict[str, Any] = {"draft": draft, "verifier": path}
        for name, module in self.named_parts(draft).items():
            self.add_module(name, module)

    @staticmethod
    @abstractmethod
    def build(configpath: str, basepath: str, ttt_steps: int) -> Any:
        """The native draft, its verifier attached."""

    @staticmethod
    @abstractmethod
    def named_parts(draft: Any) -> dict[str, nn.Module]:
        """The draft's modules by the prototype's names."""

    @abstractmethod
    def bind(self, input_ids: Tensor, attention_mask: Tensor) -> OneStep:
        """The layers over these ids and this mask."""

    @property
    def draft(self) -> D:
        """Speculators' model, which shares its parameters with this module."""
        return self._outside["draft"]

    def forward(
        self,
        hidden_states: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        hidden_states_history: Sequence[Tensor] = (),
    ) -> Tensor:
        """One TTT step; the history runs through the layers again to fill the cache, its outputs are dropped.

        Args:
            hidden_states: [B, T, h], this step's input; for Eagle3 the features [B, T, 3h], too, which ``fc`` takes.
            input_ids: [B, T] int64, already shifted.
            attention_mask: [B, T], 1 on real positions. Default: no padding.
            hidden_states_history: the ``hidden_states`` [B, T, h] of the steps before, oldest first.

        Returns:
            [B, T, h] after the layers, before ``lm_head_layernorm``.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        step, cache = self.bind(input_ids, mask), ttt_cache()
        for hidden in hidden_states_history:
            step(hidden, cache)
        return step(hidden_states, cache)

    def save_native(self, directory: str | Path) -> Path:
        """Write the draft as a Speculators checkpoint, with the verifier's tokenizer files."""
        return save_draft(self.draft, Path(directory), tokenizer_files(self._outside["verifier"]))
