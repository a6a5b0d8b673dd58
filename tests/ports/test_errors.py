import pickle

import pytest

from ports.errors import InputError

REPORT = "Caught InputError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
BACK = f"{REPORT}ports.errors.InputError: C:/a: b.ckpt: target: found NaN, Inf, expected finite\n"


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (pickle.loads(pickle.dumps(InputError("a.json", "ids", [1, 2], (3,)))), ("a.json", "ids", [1, 2], (3,))),
        (InputError(BACK), ("C:/a: b.ckpt", "target", "NaN, Inf", "finite")),
    ],
    ids=["pickled", "from a loader process's report"],
)
def test_the_message_names_file_field_found_and_expected(error, parts):
    assert isinstance(error, ValueError)
    assert (error.file, error.field, error.found, error.expected) == parts
    assert str(error) == "{}: {}: found {}, expected {}".format(*parts)


def test_a_sentence_is_no_error_of_ours():
    with pytest.raises(TypeError, match="file, field, found and expected"):
        InputError("something went wrong")
