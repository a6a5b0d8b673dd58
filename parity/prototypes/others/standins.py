"""What the other originals need before they run on one CPU beside today's packages, one function a thing.

Nothing of theirs is edited and nothing is changed on disk: names are replaced in the running process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class StepDoneError(Exception):
    """The first optimizer step was reached: everything that is wanted has been computed."""


def load_in_order(batch_size: int, files: Sequence[str] = ()) -> str:
    """Loaders give ``batch_size`` samples at a time, in this process and in order, perhaps of ``files`` alone."""
    real = torch.utils.data.DataLoader

    class Serial(real):  # type: ignore[type-arg, valid-type, misc]
        def __init__(self, dataset: Any, **named: Any) -> None:
            if files:
                dataset.data = list(files)
            fixed = {"batch_size": batch_size, "num_workers": 0, "pin_memory": False, "shuffle": False}
            super().__init__(dataset, **{**named, **fixed, "sampler": None})

    torch.utils.data.DataLoader = Serial  # type: ignore[misc, assignment]
    chosen = ", the case's first batch" if files else ""
    return f"DataLoader(batch_size={batch_size}, shuffle=False, num_workers=0, pin_memory=False){chosen}"


def draw_no_noise() -> str:
    """Uniform draws are 1/2, the middle of the noise."""
    torch.rand_like = lambda tensor, **_: torch.full_like(tensor, 0.5)  # type: ignore[assignment]
    return "torch.rand_like = 1/2: no noise"


def log_nowhere() -> str:
    """A ``wandb`` that keeps nothing."""
    module: Any = ModuleType("wandb")
    module.login = module.init = module.log = lambda *_, **__: None
    sys.modules["wandb"] = module
    return "wandb = nothing"


def config_of_old(file: Path, config: Any) -> Any:
    """The draft config as the transformers of their time held it: theta as an attribute, no scaling."""
    config.rope_scaling = None
    config.rope_theta = json.loads(file.read_text()).get("rope_theta", 10000.0)
    return config


def write_unscaled(source: Path, target: Path) -> None:
    """The draft config with ``rope_scaling`` null: their config class knows linear and dynamic alone."""
    target.write_text(json.dumps({**json.loads(source.read_text()), "rope_scaling": None}))


def fill_frequencies(model: nn.Module) -> str:
    """Rotary frequencies computed again: transformers 5 builds on the meta device and loads what the files hold."""
    for module in model.modules():
        compute: Any = getattr(module, "rope_init_fn", None)
        if compute is not None:
            module.register_buffer("inv_freq", compute(module.config, torch.device("cpu"))[0], persistent=False)
    return "the verifier's rotary frequencies computed again after loading"


def refusal(config_class: Any, file: Path) -> str:
    """What their config class says to the draft config as it is; empty if it takes it."""
    try:
        config_class.from_pretrained(str(file))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(', got')[0]}"
    return ""


class Rows:
    """In place of the data set of conversations: tokenized samples."""

    column_names: Sequence[str] = ()

    def __init__(self, samples: Sequence[dict[str, Tensor]]) -> None:
        self.samples = samples

    def shuffle(self, **_: Any) -> Rows:
        return self

    def map(self, *_: Any, **__: Any) -> Rows:
        return self

    def set_format(self, **_: Any) -> None:
        """They are tensors already."""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.samples[index]


class Engine:
    """In place of DeepSpeed's engine: float32, and the backward's gradients handed to ``done`` at the first step."""

    def __init__(self, model: nn.Module, heard: Callable[[Tensor, dict[str, Any]], None]) -> None:
        self.model, self.heard = model, heard

    def __call__(self, **inputs: Tensor) -> Any:
        return self.model(**inputs)

    def backward(self, loss: Tensor) -> None:
        self.heard(loss, sys._getframe(1).f_globals)
        loss.backward()

    def step(self) -> None:
        raise StepDoneError


def deepspeed_without_it(heard: Callable[[Tensor, dict[str, Any]], None]) -> str:
    """A ``deepspeed`` of one process on the CPU."""
    module: Any = ModuleType("deepspeed")

    def add_config_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser.add_argument("--deepspeed_config")
        return parser

    def initialize(model: nn.Module, **_: Any) -> tuple[Engine, None, None, None]:
        return Engine(model, heard), None, None, None

    module.add_config_arguments, module.initialize = add_config_arguments, initialize
    module.comm = SimpleNamespace(
        get_rank=lambda: 0, get_local_rank=lambda: torch.device("cpu"), get_world_size=lambda: 1
    )
    sys.modules["deepspeed"] = module
    return "deepspeed = one process, float32, no sharding"
