"""The tables of the documentation are what the code says now."""

from itertools import takewhile

import pytest

from docs.tables import ROOT, TABLES, differences, flags, pages, updated
from parity.checks import CHECKS
from parity.prototypes.pair import EAGLE3, HASS
from ports.spellings import NOW
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
    named = {field.alias or name for name, field in Eagle3Settings.model_fields.items() if NOW.get(name, name)}
    assert all(f"| `--{name.replace('_', '-')}` |" in table for name in named)
    for line in ("| `--verifier` | needed |", "| `--lr` | `3e-05` |", "| `--noise` | on |"):
        assert line in table


def checks_named(page, header):
    """The first column of the table below ``header``."""
    lines = (ROOT / "docs" / page).read_text().partition(f"{header}\n| --- ")[2].splitlines()[1:]
    cells = (line.split("|")[1] for line in takewhile(lambda line: line.startswith("| "), lines))
    return {name.strip(" `") for cell in cells for name in cell.split(",")}


def test_the_tables_of_checks_name_every_check():
    """Of any pair, and of the two prototypes, whose batches stand in configuration and which no process makes again."""
    own = {check.name for pair in (EAGLE3, HASS) for check in pair.checks}
    assert checks_named("kit.md", "| check | question |") == {check.name for check in CHECKS}
    named = checks_named("parity.md", "| check | question | against | precision |")
    assert named == {check.name for check in CHECKS} - {"draws", "samplers", "modules"} | own
