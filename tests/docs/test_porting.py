"""The walk of docs/porting.md, as written: its files, its commands, and what it says they print.

``COLD=1`` starts a fresh interpreter for every command, which takes a few minutes.
"""

from pathlib import Path

import pytest

from tests.docs.walk import Walk, blocks_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "porting.md"


@pytest.mark.nightly
def test_the_page_brings_a_prototype_to_green(tmp_path, programs):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    walk, blocks = Walk(tmp_path, ROOT, programs), blocks_of(PAGE.read_text())
    for block in blocks:
        walk.follow(block)
    assert walk.commands == sum(block.kind == "sh" for block in blocks) > 0
