"""The tables of the documentation are what the code says now."""

import pytest

from docs.tables import TABLES, differences, flags, pages, updated
from ports.spellings import HIDDEN
from ports.training.settings import Eagle3Settings


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_page_holds_its_table_of_now(page):
    content = pages()
    assert len(content) == len(TABLES)
    assert page.read_text() == content[page], "run python -m docs.tables"


def test_a_stale_table_is_replaced():
    text = updated("a <!-- flags --> stale <!-- /flags --> b", "flags", lambda: "new")
    assert text == "a <!-- flags -->\n\nnew\n\n<!-- /flags --> b"


def test_the_counts_of_masks_add_up():
    for row in differences():
        assert row.prototype - row.only_prototype == row.exact - row.only_exact
        assert row.only_prototype + row.only_exact > 0


def test_every_flag_is_there_with_its_default():
    table = flags()
    assert len(Eagle3Settings.model_fields) > 30
    named = {field.alias or name for name, field in Eagle3Settings.model_fields.items()} - HIDDEN
    assert all(f"| `--{name.replace('_', '-')}` |" in table for name in named)
    for line in ("| `--verifier` | needed |", "| `--lr` | `3e-05` |", "| `--noise` | on |"):
        assert line in table
