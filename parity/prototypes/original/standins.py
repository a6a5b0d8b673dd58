"""What the prototypes need before they run on a CPU beside today's transformers.

Each stand-in is one function that changes one thing from outside and returns the line that names it in ``meta.json``.
No file of the prototype is edited.
"""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

import numpy as np
import torch


class LossKwargs(TypedDict, total=False):
    """Takes the place of a typing-only name that transformers 5 no longer exports."""

    num_items_in_batch: int


class TorchProxy(ModuleType):
    """The module ``torch`` with some names replaced."""

    def __init__(self, **replaced: Any) -> None:
        super().__init__("torch")
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def add_loss_kwargs() -> list[str]:
    """``transformers.utils.LossKwargs``, imported by the prototypes and gone in transformers 5."""
    utils: Any = importlib.import_module("transformers.utils")
    if "LossKwargs" in dir(utils):
        return []
    utils.LossKwargs = LossKwargs
    return ["transformers.utils.LossKwargs"]


def add_default_rope() -> list[str]:
    """The entry "default" of ``ROPE_INIT_FUNCTIONS``, gone in transformers 5."""
    rope: Any = importlib.import_module("transformers.modeling_rope_utils")
    if "default" in rope.ROPE_INIT_FUNCTIONS:
        return []
    rope.ROPE_INIT_FUNCTIONS["default"] = plain_rope
    return ["transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS['default']"]


def plain_rope(config: Any, device: Any = None, **_: Any) -> tuple[torch.Tensor, float]:
    """Unscaled rotary frequencies theta^(-2i/e) and the attention factor 1."""
    theta = getattr(config, "rope_theta", None) or (config.rope_parameters or {}).get("rope_theta", 10000.0)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, size, 2, dtype=torch.int64).to(device=device, dtype=torch.float) / size
    return 1.0 / (theta**exponents), 1.0


def make_cuda_identity() -> str:
    """``Tensor.cuda()`` returns the tensor: the scripts call it on their accuracy counters."""
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    return "torch.Tensor.cuda = identity"


def force_full_precision() -> str:
    """``Accelerator(mixed_precision="no")`` whatever the script asks for; call before the script is imported."""
    accelerate: Any = importlib.import_module("accelerate")
    original = accelerate.Accelerator
    accelerate.Accelerator = lambda **arguments: original(**{**arguments, "mixed_precision": "no"})
    return "accelerate.Accelerator(mixed_precision='no')"


def read_bfloat16_as_float32(modules: list[ModuleType]) -> str:
    """In the given modules the name ``torch`` becomes a proxy whose ``bfloat16`` is ``float32``."""
    for module in modules:
        module.__dict__["torch"] = TorchProxy(bfloat16=torch.float32)
    return "globals()['torch'] of main module and model module = proxy with bfloat16 -> float32"


def watch_noise(script: ModuleType, record: Callable[[torch.Tensor], None]) -> str:
    """Hand every tensor that the script's ``torch.rand_like`` draws to ``record``."""

    def rand_like(tensor: torch.Tensor, **arguments: Any) -> torch.Tensor:
        drawn = torch.rand_like(tensor, **arguments)
        record(drawn)
        return drawn

    replaced = {name: value for name, value in vars(script.torch).items() if name == "bfloat16"}
    script.__dict__["torch"] = TorchProxy(**replaced, rand_like=rand_like)
    return "main module's torch.rand_like recorded (the real one is called)"


def sort_files(script: ModuleType) -> str:
    """Samples in natural order: the script keeps the order of the file system."""
    script.datapath.sort(key=natural_key)
    return "module.datapath sorted naturally (the original keeps os.walk order)"


def natural_key(path: str | Path) -> list[tuple[int, str]]:
    """``data_2`` before ``data_10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def load_in_process(script: ModuleType) -> str:
    """No worker processes, so that noise is drawn from the one generator."""
    script.train_config["num_workers"] = 0
    return "train_config['num_workers'] = 0"


def switch_noise_off(script: ModuleType) -> str:
    """The switch is in the script; it has no argument for it."""
    script.train_config["data_noise"] = False
    return "train_config['data_noise'] = False"


def change_loader(script: ModuleType, shuffle: bool) -> str:
    """No pinned memory on a CPU, and shuffling off where the request says so."""
    original = script.DataLoader
    changes: dict[str, Any] = {"pin_memory": False} if shuffle else {"pin_memory": False, "shuffle": False}
    script.__dict__["DataLoader"] = lambda *positional, **named: original(*positional, **{**named, **changes})
    return f"DataLoader({', '.join(f'{name}={value}' for name, value in changes.items())})"


def wrap_model(model: torch.nn.Module) -> torch.nn.Module:
    """Give the prepared model the ``.module`` that the scripts read; DeepSpeed's engine has one already."""
    return model if hasattr(model, "module") else torch.nn.DataParallel(model)


WRAP_LINE = (
    "Accelerator.prepare result for the draft wrapped in torch.nn.DataParallel (CPU: plain call-through) "
    "so that .module exists"
)


def seed_everything(seed: int) -> str:
    """Seed python, numpy and torch, as the script's own seeding does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return f"seeded with {seed} when Accelerator.prepare returned"
