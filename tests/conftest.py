"""What holds for all tests, and their order; a process that only hands tests to workers imports no library."""

import os
import re
import signal
import sys
import tempfile

from tests.needs import CHECKOUTS, add_checkouts, checkout

if "gpu" not in sys.argv:  # pytest -m gpu; all other tests are of the CPU, whatever the machine has
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XDG_CACHE_HOME"] = os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp()  # digests of weights; code of models
os.environ.setdefault("OMP_NUM_THREADS", "1")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it, and what tests start inherits that
HANDS_OUT = re.search(r" (-n|--numprocesses)[ =]?([1-9]|auto|logical)", " ".join(["", *sys.argv]))
HERE = {"--pdb", "--collect-only", "--co"} & {*sys.argv}
if "PYTEST_XDIST_WORKER" in os.environ or HERE or not HANDS_OUT:
    from tests.state import *  # noqa: F403

prototype_dir, eagle_dir, hass_dir, deepspec_dir, specforge_dir = map(checkout, CHECKOUTS)


def pytest_addoption(parser):
    """Checkouts that some tests run."""
    add_checkouts(parser)


def pytest_collection_modifyitems(items):
    """Files that fork come first: one of two workers meets them, and starts what they are forked from, alone."""
    forking = {item.path for item in items if {"fork", "forks", "programs"} & {*getattr(item, "fixturenames", ())}}
    items.sort(key=lambda item: item.path not in forking)
