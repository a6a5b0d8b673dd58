"""The one place where the harness sets seeds, threads and numeric modes, and the record of what they were."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import random
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

PACKAGES = ("torch", "transformers", "speculators", "accelerate", "safetensors", "numpy", "deepspeed")


@contextlib.contextmanager
def deterministic(seed: int = 0, threads: int = 1) -> Iterator[None]:
    """Run the body with fixed seeds, ``threads`` CPU threads, no TF32 and deterministic kernels; restore after."""
    old_threads, old_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    old_precision, old_dtype = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    old_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    set_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(old_threads)
        torch.set_float32_matmul_precision(old_precision)
        torch.use_deterministic_algorithms(old_deterministic, warn_only=old_warn_only)
        torch.set_default_dtype(old_dtype)
        torch.set_rng_state(drawn[0])
        random.setstate(drawn[1])
        np.random.set_state(drawn[2])


def quietly() -> contextlib.AbstractContextManager[object]:
    """What the body prints goes nowhere."""
    return contextlib.redirect_stdout(io.StringIO())


def hush() -> None:
    """No log lines of Speculators, no progress bars of datasets, none and no warnings of transformers."""
    import datasets
    from loguru import logger
    from transformers.utils import logging

    logger.remove()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.set_verbosity_error()


def describe(seed: int | None = None) -> dict[str, Any]:
    """Versions, machine and numeric modes as they are now."""
    return {
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
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


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
