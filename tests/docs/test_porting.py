"""The walk of docs/porting.md, as written: its files, its commands, and what it says they print.

``COLD=1`` starts a fresh interpreter for every command, which takes a few minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs import warm
from tests.docs.walk import Walk, blocks_of
from tests.tidy import untidy

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "porting.md"


@pytest.fixture
def programs() -> Iterator[Path]:
    """A folder of ``python``, ``pytest`` and ``parity`` that need not import everything anew."""
    if os.environ.get("COLD"):
        yield Path(sys.executable).parent
        return
    with tempfile.TemporaryDirectory() as name:
        folder, address = Path(name) / "bin", f"{name}/door"
        warm.write_clients(folder, address)
        command = [sys.executable, warm.__file__, address]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as server:
            assert server.stdout is not None
            while (line := server.stdout.readline()) != b"ready\n":
                assert line, "the server of commands ended"
            yield folder
            server.terminate()


def test_the_page_brings_a_prototype_to_green(tmp_path: Path, programs: Path) -> None:
    walk, blocks = Walk(tmp_path, ROOT, programs), blocks_of(PAGE.read_text())
    for block in blocks:
        walk.follow(block)
    assert walk.commands == sum(block.kind == "sh" for block in blocks) > 0
    assert untidy(tmp_path, "sprout") == ""
