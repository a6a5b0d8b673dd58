"""The one place where the harness sets seeds, threads and numeric modes, and the record of what they were."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import platform
import random
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

PACKAGES = ("torch", "transformers", "speculators", "accelerate", "safetensors", "numpy", "deepspeed")

OPTIONAL = {
    "deepspeed": ("the bf16ds cases with --original", "pip install -e '.[deepspeed]'"),
    "tensorboard": ("--log_with tensorboard", "pip install -e '.[tensorboard]'"),
    "wandb": ("--log_with wandb", "pip install -e '.[wandb]'"),
    "vllm": ("serving a trained draft", "see vLLM's own installation guide"),
}
"""Packages that something needs and most does not: what for, and how to get it."""

KEPT: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_rng_state, torch.set_rng_state),
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
)
"""How each state of the process that a run disturbs is read and restored."""


@contextlib.contextmanager
def deterministic(seed: int = 0, threads: int = 1) -> Iterator[None]:
    """Run the body with fixed seeds, ``threads`` CPU threads, no TF32 and deterministic kernels; restore after."""
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    with contextlib.ExitStack() as stack:
        stack.callback(torch.use_deterministic_algorithms, strict, warn_only=warn_only)
        for read, restore in KEPT:
            stack.callback(restore, read())
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        set_seed(seed)
        yield


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """What the body prints goes nowhere, on stdout and stderr: it speaks to one who runs it, and a report is read."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def hush() -> None:
    """No log lines of Speculators, no progress bars of datasets, none and no warnings of transformers."""
    import datasets
    from loguru import logger
    from transformers.utils import logging

    logger.remove()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.set_verbosity_error()


def describe(seed: int | None = None, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions, machine and numeric modes as they are now; ``device`` is the one that the run is on."""
    device = torch.device(device)
    return {
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default_dtype": str(torch.get_default_dtype()),
        "seed": seed,
    }


def described() -> dict[str, Any]:
    """:func:`describe` in the modes that every side runs in."""
    with deterministic():
        return describe()


@functools.cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def optional_parts() -> list[str]:
    """One line for each optional package and for the GPU: is it there, and if not, what does that matter?"""
    lines = [
        f"{name}: present" if find_spec(name) else f"{name}: missing, needed for {use}: {remedy}"
        for name, (use, remedy) in OPTIONAL.items()
    ]
    none = "none: tests marked gpu are skipped, everything else runs on the CPU"
    return [*lines, f"GPU: {'present' if torch.cuda.is_available() else none}"]
