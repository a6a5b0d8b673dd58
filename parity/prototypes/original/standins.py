"""What the prototypes need before they run on a CPU beside today's transformers.

Each stand-in is one function that changes one thing from outside. No file of the prototype is edited.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ports.training.records import natural_key


class TorchProxy(ModuleType):
    """The module ``torch`` with some names replaced."""

    def __init__(self, **replaced: Any) -> None:
        super().__init__("torch")
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def add_lost_names() -> None:
    """What the prototypes import and transformers 5 no longer has: a name for annotations, unscaled rotary frequencies.

    Where transformers has them they stay.
    """
    utils: Any = importlib.import_module("transformers.utils")
    rope: Any = importlib.import_module("transformers.modeling_rope_utils")
    if "LossKwargs" not in dir(utils):
        utils.LossKwargs = utils.TransformersKwargs
    rope.ROPE_INIT_FUNCTIONS.setdefault("default", plain_rope)


def plain_rope(config: Any, device: Any = None, **_: Any) -> tuple[torch.Tensor, float]:
    """Unscaled rotary frequencies theta^(-2i/e) and the attention factor 1."""
    theta = getattr(config, "rope_theta", None) or (config.rope_parameters or {}).get("rope_theta", 10000.0)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, size, 2, dtype=torch.int64).to(device=device, dtype=torch.float) / size
    return 1.0 / (theta**exponents), 1.0


def make_cuda_identity() -> None:
    """``Tensor.cuda()`` returns the tensor: the scripts call it on their accuracy counters."""
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]


def force_full_precision() -> None:
    """``Accelerator(mixed_precision="no")`` whatever the script asks for; call before the script is imported."""
    accelerate: Any = importlib.import_module("accelerate")
    original = accelerate.Accelerator
    accelerate.Accelerator = lambda **arguments: original(**{**arguments, "mixed_precision": "no"})


def proxy_torch(script: ModuleType, model: ModuleType | None) -> None:
    """The name ``torch`` of the script becomes a proxy; and with a ``model``, in both ``bfloat16`` is ``float32``."""
    script.__dict__["torch"] = TorchProxy()
    for module in (script, model) if model else ():
        module.__dict__["torch"] = TorchProxy(bfloat16=torch.float32)


def arrange_data(script: ModuleType, noise: bool, shuffle: bool) -> None:
    """Samples in natural order, loaded in this process without pinned memory, with noise and shuffling as asked for.

    The script keeps the order of the file system and has no argument for any of these.
    """
    script.datapath.sort(key=lambda file: natural_key(Path(file)))
    script.train_config.update({"num_workers": 0} | ({} if noise else {"data_noise": False}))
    options = {"pin_memory": False} | ({} if shuffle else {"shuffle": False})
    original = script.DataLoader
    script.__dict__["DataLoader"] = lambda *positional, **named: original(*positional, **{**named, **options})
