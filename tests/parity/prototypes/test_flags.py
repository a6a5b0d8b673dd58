"""The table of flags in the docs is what the settings say now."""

from __future__ import annotations

from pathlib import Path

from parity.prototypes.flags import BEGIN, END, as_table, updated
from ports.eagle3.settings import Eagle3Settings


def test_the_page_holds_the_table_of_now() -> None:
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    assert page == updated(page), "run python -m parity.prototypes.flags"
    assert BEGIN in page


def test_a_stale_table_is_replaced() -> None:
    assert updated(f"a {BEGIN} stale {END} b").count("stale") == 0
    assert updated(f"a {BEGIN}{END} b").endswith(f"{END} b")


def test_every_flag_is_there_with_its_default() -> None:
    table = as_table()
    assert len(Eagle3Settings.model_fields) > 30
    assert all(f"| `--{name}` |" in table for name in Eagle3Settings.model_fields)
    assert "| `--basepath` | needed |" in table
    assert "| `--lr` | `3e-05` |" in table
    assert "| `--noise` | on |" in table
    assert "| `--ttt_alignment` | `prototype` |" in table
    assert "Eagle3: bool" in table
