from types import SimpleNamespace

import pytest

from ports.training.loss.normalisation import GlobalNormalisation, build_normalisation


@pytest.mark.parametrize(
    ("kind", "processes", "together"), [("rank", 2, False), ("global", 1, False), ("global", 2, True)]
)
def test_rows_are_counted_together_where_that_was_asked_for_and_there_is_somebody(kind, processes, together):
    found = build_normalisation(kind, SimpleNamespace(num_processes=processes, device="cpu"))
    assert (type(found) is GlobalNormalisation) is together
