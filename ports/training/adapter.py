"""What the stand-ins for the prototypes' ``Model`` and ``EConfig`` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from speculators import SpeculatorModel
from torch import nn

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
    """A native draft under a prototype's parameter names: subclasses register the draft's own submodules.

    The draft itself is held unregistered, so that no parameter has two names.
    """

    def __init__(self, draft: D, verifier: str) -> None:
        super().__init__()
        self._outside: dict[str, Any] = {"draft": draft, "verifier": verifier}

    @property
    def draft(self) -> D:
        """Speculators' model, which shares its parameters with this module."""
        draft: D = self._outside["draft"]
        return draft

    def save_native(self, directory: str | Path) -> Path:
        """Write the draft as a Speculators checkpoint, with the verifier's tokenizer files."""
        return save_draft(self.draft, Path(directory), tokenizer_files(self._outside["verifier"]))
