"""What of a reopened draft's configuration is held against the trained one's."""

from types import SimpleNamespace

import pytest

from parity.compare import RowKey
from parity.prototypes.checkpoints import _config_rows


@pytest.mark.parametrize("name", ["_commit_hash", "_name_or_path", "transformers_version", "hidden_size"])
def test_only_what_says_where_the_file_lies_may_differ(name):
    """By entry, at the top and in the layer's: a transformers of Python 3.10 writes ``_commit_hash`` when it reads."""
    trained = {"layers": 1, "layer": {"hidden_size": 8}}
    reopened = {**trained, name: None, "layer": {"hidden_size": 8, name: None}}
    configs = (SimpleNamespace(to_dict=lambda one=one: one) for one in (trained, reopened))
    rows = _config_rows(RowKey("case", "port", "round_trip"), *configs)
    wrong = [row.tensor for row in rows if not row.passed]
    assert len(wrong) == (2 if name == "hidden_size" else 0)
