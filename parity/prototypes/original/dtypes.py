"""Which dtype each tensor of the first optimizer step had, by name."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

_ATTENTION = "eager_attention_forward_train"


class DtypeLog:
    """Keeps the first dtype seen under each name, until closed."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}
        self._handles: list[Any] = []
        self._open = True

    def note(self, name: str, value: Any) -> None:
        """Remember the dtype of ``value`` under ``name``, unless one is known; what is no tensor is passed over."""
        if self._open and isinstance(value, torch.Tensor):
            self.seen.setdefault(name, str(value.dtype))

    def watch_leaves(self, model: torch.nn.Module) -> None:
        """Note input and output of every module without children."""
        for name, module in model.named_modules():
            if not list(module.children()):
                self._handles.append(module.register_forward_hook(self._leaf_hook(name)))

    def watch_output(self, name: str, module: torch.nn.Module) -> None:
        """Note what a module returns under ``name``."""
        self._handles.append(module.register_forward_hook(lambda _module, _inputs, output: self.note(name, output)))

    def _leaf_hook(self, name: str) -> Any:
        def hook(_module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.note(f"{name}.in", inputs[0] if inputs else None)
            self.note(f"{name}.out", output)

        return hook

    def watch_attention(self, layers: ModuleType) -> None:
        """Note what goes through the prototype's training attention."""
        inner = layers.__dict__[_ATTENTION]

        def attention(module: Any, query: Any, keys: Any, values: Any, mask: Any, **named: Any) -> Any:
            result = inner(module, query, keys, values, mask, **named)
            seen = {"query": query, "key": keys[0], "value": values[0], "mask": mask}
            seen |= {"out": result[0], "weights": result[1]} | ({"key_step1": keys[1]} if len(keys) > 1 else {})
            for name, value in seen.items():
                self.note(f"attention.{name}", value)
            return result

        layers.__dict__[_ATTENTION] = attention

    def close(self) -> None:
        """Stop listening and take every hook off."""
        self._open = False
        while self._handles:
            self._handles.pop().remove()
