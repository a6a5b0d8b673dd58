"""Files from outside: read whole or refused by name, and never executed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from parity.errors import InputError
from parity.files import read_lines, read_object, read_sample, read_tensors


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_tensors_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.tensor([True, False]), "c": torch.ones(1, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = read_tensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found)


@pytest.mark.parametrize("save", [pickle.dump, torch.save])
def test_a_pickle_named_safetensors_is_refused_and_not_executed(save: Any, tmp_path: Path) -> None:
    mark, file = tmp_path / "executed", tmp_path / "x.safetensors"
    with file.open("wb") as stream:
        save({"a": Bomb(mark)}, stream)
    with pytest.raises(InputError, match=r"x\.safetensors: file: .* expected a safetensors file"):
        read_tensors(file)
    assert not mark.exists()


def test_the_bomb_goes_off_where_pickles_are_trusted(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(40)}, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"x\.safetensors"):
        read_tensors(file)


@pytest.mark.parametrize("name", ["missing.safetensors", "."])
def test_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a safetensors file"):
        read_tensors(tmp_path / name)


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"mb": 0}\n{"mb": 1, "a": [NaN]}\n')
    assert [line["mb"] for line in read_lines(tmp_path / "x.jsonl")] == [0, 1]


@pytest.mark.parametrize("bad", ["{", "", "[1]", "3", '"text"', "[" * 100_000, "1" * 5000])
def test_a_bad_line_is_named_by_number(bad: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"mb": 0}}\n{{"mb": 1}}\n{bad}\n{{"mb": 3}}\n')
    lines = read_lines(tmp_path / "x.jsonl")
    assert [next(lines)["mb"], next(lines)["mb"]] == [0, 1]
    with pytest.raises(InputError, match=r"x\.jsonl: line 3: found .*, expected a JSON object"):
        next(lines)


def test_lines_of_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xff")
    with pytest.raises(InputError, match="expected a JSON-lines file"):
        list(read_lines(tmp_path / "x.jsonl"))
    with pytest.raises(InputError, match="expected a JSON-lines file"):
        list(read_lines(tmp_path / "missing.jsonl"))


def test_an_object_comes_back(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1, 2]}')
    assert read_object(tmp_path / "x.json") == {"a": [1, 2]}


def test_a_sample_comes_back(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3), "b": torch.ones(2)}, tmp_path / "x.ckpt")
    assert torch.equal(read_sample(tmp_path / "x.ckpt", ["a"])["a"], torch.arange(3))


def test_a_sample_with_code_in_it_is_refused_and_not_executed(tmp_path: Path) -> None:
    torch.save({"a": Bomb(tmp_path / "executed")}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match=r"x\.ckpt: file: .*expected a torch file of plain tensors"):
        read_sample(tmp_path / "x.ckpt", ["a"])
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [({"b": torch.ones(1)}, "a: found missing"), ({"a": 3}, "a: found int"), (torch.ones(1), "a: found missing")],
)
def test_a_sample_without_a_field(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match=message):
        read_sample(tmp_path / "x.ckpt", ["a"])


def _is_object(content: bytes) -> bool:
    """A few bytes can be a whole JSON object."""
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False


@given(content=st.binary(max_size=200))
@example(content=b"{")
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    assume(not _is_object(content))
    file = tmp_path_factory.getbasetemp() / "noise"
    file.write_bytes(content)
    for read in (read_tensors, read_object, lambda path: read_sample(path, ["a"])):
        with pytest.raises(InputError, match="noise"):
            read(file)
