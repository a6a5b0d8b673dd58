"""State that belongs to no test: threads, default dtype, seeds, the network, log levels."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import ports  # noqa: F401, I001  (first: its guard must run before anything imports transformers)
import numpy as np
import pytest
import torch
from loguru import logger

logger.remove()
logger.add(sys.stderr, level="WARNING")


@pytest.fixture
def tf32() -> Iterator[None]:
    """As ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1``, which some container images set, leaves it."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(autouse=True)
def known_state():
    """One thread, float32, seed 0."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
