import pickle

import pytest

from ports.errors import InputError


def test_the_message_names_file_field_found_and_expected():
    error = InputError("a.json", "hidden_size", 3, "4, the verifier's")
    assert str(error) == "a.json: hidden_size: found 3, expected 4, the verifier's"
    assert isinstance(error, ValueError)


def test_it_survives_the_way_from_a_loader_process():
    error = pickle.loads(pickle.dumps(InputError("a.json", "ids", [1, 2], (3,))))
    assert (error.file, error.field, error.found, error.expected) == ("a.json", "ids", [1, 2], (3,))
    assert str(error) == "a.json: ids: found [1, 2], expected (3,)"


def test_it_is_read_back_from_a_loader_process_report():
    report = "Caught InputError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
    error = InputError(f"{report}ports.errors.InputError: C:/a: b.ckpt: target: found NaN, Inf, expected finite\n")
    assert (error.file, error.field, error.found, error.expected) == ("C:/a: b.ckpt", "target", "NaN, Inf", "finite")


def test_a_sentence_is_no_error_of_ours():
    with pytest.raises(TypeError, match="file, field, found and expected"):
        InputError("something went wrong")
