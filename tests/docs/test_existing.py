"""The walk of docs/existing.md, as written."""

from pathlib import Path

from tests.docs.walk import Walk, blocks_of

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_brings_a_pair_to_green(tmp_path, programs):
    walk, blocks = Walk(tmp_path, ROOT, programs), blocks_of((ROOT / "docs" / "existing.md").read_text())
    for block in blocks:
        walk.follow(block)
    assert walk.commands == sum(block.kind == "sh" for block in blocks) > 0
