"""State that belongs to no test: threads, default dtype, seeds, log levels; and processes that tests start."""

import ports  # noqa: F401, I001  (first: its guard must run before anything imports transformers)
import functools
import gc
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import speculators.config
import torch
from hypothesis import settings
from loguru import logger

from tests.forked import Forked, serve, write_clients

__all__ = ["a_card", "built", "fork", "fresh_dynamo", "known_state", "place", "programs", "tf32"]

speculators.config.version = functools.cache(speculators.config.version)  # every config asks, milliseconds each time
gc.freeze()  # a collection need not look through the libraries
logger.remove()
logger.add(sys.stderr, level="WARNING")
settings.register_profile("here", deadline=None, derandomize=True)  # a busy machine is slow, and every run is the same
settings.load_profile("here")


@pytest.fixture
def tf32():
    """As ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1``, which some container images set, leaves it."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def fresh_dynamo():
    """Nothing compiled: torch may fail to say why it compiles ``flex_attention`` anew, for other arguments."""
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def a_card(request):
    """Where a test needs one."""
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device: pytest -m gpu on a machine with one")


@pytest.fixture(autouse=True)
def known_state():
    """One thread, float32, seed 0."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def fork(tmp_path):
    """``fork(target, *arguments)`` in a process of its own, which ends with the test at the latest."""
    running = []

    def start(*words, **environment):
        running.append(Forked(tmp_path / "forked", *words, **environment))
        return running[-1]

    yield start
    for process in running:
        process.kill_all()


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """See :mod:`tests.place`; to be left as it is."""
    from tests.place import build

    return build(tmp_path_factory.mktemp("place"))


@pytest.fixture
def place(built, tmp_path):
    """A copy that a test may break."""
    return type(built)(Path(shutil.copytree(built.root, tmp_path / "place")))


@pytest.fixture(scope="session")
def programs():
    """A folder with ``python``, ``pytest``, ``parity`` and ``accelerate`` that need not import everything anew.

    With ``COLD=1`` in the environment it is the one of the installed programs.
    """
    if os.environ.get("COLD"):
        yield Path(sys.executable).parent
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bin"
        write_clients(folder, f"{name}/door")
        server = Forked(Path(name), serve, str(folder), f"{name}/door")
        while "ready" not in server.said:
            assert server.returncode is None, server.said
            time.sleep(0.01)
        yield folder
        server.kill_all()
