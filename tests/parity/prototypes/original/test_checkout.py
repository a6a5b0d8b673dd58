import pytest

from parity.errors import InputError
from parity.prototypes.original.checkout import COMMIT, verify

SCRIPT = "research/eagle3/train/main_train_full_gradient_calc_eagle3.py"


def test_a_missing_file_is_named(toy):
    (toy / SCRIPT).unlink()
    with pytest.raises(InputError, match=f"{SCRIPT}.*missing.*{COMMIT}"):
        verify(toy, "eagle3")
