"""Hostile input for whole commands; see :mod:`tests.fuzz`."""

from tests import place
from tests.fuzz import COUNT, fuzz_all, table


def test_no_input_ends_in_a_traceback_or_in_success_without_effect(tmp_path):
    (tmp_path / "built").mkdir()
    counts, reports = fuzz_all(range(COUNT), place.build(tmp_path / "built"), tmp_path)
    print(table(counts))
    assert not reports, "\n\n".join(reports)
    assert {code for _, code in counts} >= {0, 2}
