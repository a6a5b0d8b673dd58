"""What the page on architectures says was tried with vLLM is what vLLM does: of one that is served, and one not."""

import json

import pytest

from docs.served import SAME, SERVED, served
from ports.verifier.interfaces import installed
from tests.needs import VLLM

SAID = json.loads(SERVED.read_text())

pytestmark = [VLLM, pytest.mark.skipif(installed() != SAID["version"], reason=f"needs vLLM {SAID['version']}")]


@pytest.mark.parametrize("name", ["phi3", "gemma3_text"])
def test_the_page_says_what_vllm_does(name, tmp_path):
    said = SAID["trials"][name]
    assert (said == SAME) is (name == "phi3")
    assert served(name, tmp_path) == said, f"run python -m docs.served {name}"
