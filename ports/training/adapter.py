"""What the stand-ins for the prototypes' ``Model`` and ``EConfig`` share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from speculators import SpeculatorModel
from torch import nn

from ports.errors import InputError
from ports.training.draft_config import read_config_dict
from ports.training.saving import save_draft
from ports.training.verifier import tokenizer_files

D = TypeVar("D", bound=SpeculatorModel)


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
    """A native draft under a prototype's parameter names: subclasses build it and name its submodules.

    The draft itself is held unregistered, so that no parameter has two names.
    """

    def __init__(self, config: EConfig, load_emb: bool = True, path: str | None = None, ttt_steps: int = 3) -> None:
        """Build the draft of ``config`` for the verifier at ``path``.

        Args:
            config: the draft's config.
            load_emb: must be true: a draft without its verifier's embedding could not be served.
            path: verifier directory or hub id.
            ttt_steps: how many tokens a checkpoint from :meth:`save_native` proposes.

        Raises:
            InputError: see ``load_draft_config`` of the port's ``config`` module.
        """
        super().__init__()
        if path is None or not load_emb:
            raise InputError(config.configpath, "path, load_emb", (path, load_emb), "a verifier and its embedding")
        self._outside: dict[str, Any] = {"draft": self.build(config.configpath, path, ttt_steps), "verifier": path}
        for name, module in self.named_parts(self.draft).items():
            self.add_module(name, module)

    @staticmethod
    @abstractmethod
    def build(configpath: str, basepath: str, ttt_steps: int) -> Any:
        """The native draft, its verifier attached."""

    @staticmethod
    @abstractmethod
    def named_parts(draft: Any) -> dict[str, nn.Module]:
        """The draft's modules by the prototype's names."""

    @property
    def draft(self) -> D:
        """Speculators' model, which shares its parameters with this module."""
        draft: D = self._outside["draft"]
        return draft

    def save_native(self, directory: str | Path) -> Path:
        """Write the draft as a Speculators checkpoint, with the verifier's tokenizer files."""
        return save_draft(self.draft, Path(directory), tokenizer_files(self._outside["verifier"]))
