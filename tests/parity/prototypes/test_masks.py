"""The table of differences in the docs is what the code counts now."""

from __future__ import annotations

from pathlib import Path

from parity.prototypes.masks import BEGIN, END, differences, updated


def test_the_page_holds_the_table_of_now() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    assert page == updated(page), "run python -m parity.prototypes.masks"
    assert page.count("| eagle3_") == 4


def test_a_stale_table_is_replaced() -> None:
    assert updated(f"a {BEGIN} stale {END} b").count("stale") == 0
    assert updated(f"a {BEGIN}{END} b").endswith(f"{END} b")


def test_the_counts_add_up() -> None:
    for row in differences():
        assert row.prototype - row.only_prototype == row.exact - row.only_exact
        assert row.only_prototype + row.only_exact > 0
