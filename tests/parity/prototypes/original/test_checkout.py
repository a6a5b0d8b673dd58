import re

import pytest

from parity.errors import InputError
from parity.prototypes.original.checkout import COMMIT, verify

SCRIPT = "research/eagle3/train/main_train_full_gradient_calc_eagle3.py"


def test_a_tampered_file_is_named_with_both_hashes(toy):
    assert verify(toy, "eagle3") == []
    with (toy / SCRIPT).open("a") as opened:
        opened.write("\n")
    (line,) = verify(toy, "eagle3")
    found, expected = re.fullmatch(rf"{re.escape(SCRIPT)}: found (\w{{64}}), expected (\w{{64}})", line).groups()
    assert found != expected


def test_a_missing_file_is_named(toy):
    (toy / SCRIPT).unlink()
    with pytest.raises(InputError, match=f"{SCRIPT}.*missing.*{COMMIT}"):
        verify(toy, "eagle3")
