"""Hostile input for whole commands; see :mod:`tests.fuzz`."""

import pytest

from tests.fuzz import COUNT, fuzz


@pytest.mark.parametrize("number", range(COUNT))
def test_no_input_ends_in_a_traceback_or_in_success_without_effect(built, tmp_path, number):
    fuzz(number, built, tmp_path)


def test_some_are_taken_and_some_are_refused(built, tmp_path):
    assert [fuzz(number, built, tmp_path / str(number)).code for number in (0, 1)] == [0, 2]
