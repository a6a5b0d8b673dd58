"""Files from outside: read whole or refused by name, and never executed."""

import json
import pickle

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from parity.errors import InputError
from parity.files import read_lines, read_object, read_sample, read_tensors
from tests.mutants import Bomb

READERS = {
    "tensors": read_tensors,
    "sample": lambda file: read_sample(file, ["a"]),
    "object": read_object,
    "lines": lambda file: list(read_lines(file)),
}


@pytest.mark.parametrize("save", [pickle.dump, torch.save])
@pytest.mark.parametrize("reader", READERS)
def test_a_file_with_code_in_it_is_refused_and_not_executed(save, reader, tmp_path):
    file, bomb = tmp_path / "x", Bomb(tmp_path / "executed")
    with file.open("wb") as stream:
        save({"a": bomb}, stream)
    with pytest.raises(InputError, match=r"x: (file|line 1): found .*, expected a"):
        READERS[reader](file)
    assert not bomb.mark.exists()
    pickle.loads(pickle.dumps(bomb))
    assert bomb.mark.exists()  # where pickles are trusted


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["missing", "."])
def test_no_file(name, reader, tmp_path):
    with pytest.raises(InputError, match=r"file: found .*, expected a"):
        READERS[reader](tmp_path / name)


@pytest.mark.parametrize("bad", ["{", "", "[1]", "3", '"text"', "[" * 100_000, "1" * 5000])
def test_a_bad_line_is_named_by_number(bad, tmp_path):
    (tmp_path / "x.jsonl").write_text(f'{{"mb": 0}}\n{{"mb": 1}}\n{bad}\n{{"mb": 3}}\n')
    lines = read_lines(tmp_path / "x.jsonl")
    assert [next(lines)["mb"], next(lines)["mb"]] == [0, 1]
    with pytest.raises(InputError, match=r"x\.jsonl: line 3: found .*, expected a JSON object"):
        next(lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [({"b": torch.ones(1)}, "a: found missing"), ({"a": 3}, "a: found int"), (torch.ones(1), "a: found missing")],
)
def test_a_sample_without_a_field(content, message, tmp_path):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match=message):
        read_sample(tmp_path / "x.ckpt", ["a"])


def _is_object(content):
    """A few bytes can be a whole JSON object."""
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False


@given(content=st.binary(max_size=200))
@example(content=b"{")
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused(tmp_path_factory, content):
    assume(content.strip() and not _is_object(content))
    file = tmp_path_factory.getbasetemp() / "noise"
    file.write_bytes(content)
    for read in READERS.values():
        with pytest.raises(InputError, match="noise"):
            read(file)
