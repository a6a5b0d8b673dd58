import contextlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ports.errors import InputError
from ports.training.data.records import list_records, natural_key, read_record

WIDTHS = {"hidden_state": 6, "target": 2}


def good(length=4):
    return {
        "input_ids": torch.arange(length),
        "loss_mask": torch.tensor([0, 1] * (length // 2)),
        "hidden_state": torch.randn(length, 6),
        "target": torch.randn(length, 2),
    }


@pytest.fixture
def write(tmp_path):
    def to_file(**changes) -> Path:
        record = {**good(), **changes}
        torch.save({name: value for name, value in record.items() if value is not None}, tmp_path / "data_0.ckpt")
        return tmp_path / "data_0.ckpt"

    return to_file


def test_a_good_record_comes_back_as_it_was(write):
    record = good()
    read = read_record(write(**record), WIDTHS, 10)
    assert set(read) == set(record)
    assert all(torch.equal(read[name], record[name]) for name in record)


def test_only_the_fields_asked_for_are_needed(write):
    assert set(read_record(write(target=None), {"hidden_state": 6}, 10)) == {"input_ids", "loss_mask", "hidden_state"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_keep_their_dtype(write, dtype):
    assert read_record(write(target=torch.ones(4, 2, dtype=dtype)), WIDTHS, 10)["target"].dtype is dtype


NAN, INF = torch.full((4, 2), float("nan")), torch.full((4, 2), float("-inf"))
BAD = [
    ({"input_ids": None}, "input_ids", "missing", "a tensor (fields present: loss_mask, hidden_state, target)"),
    ({"input_ids": torch.arange(4).float()}, "input_ids", "float32", "int64 [T]"),
    ({"input_ids": torch.zeros(1, 4, dtype=torch.int64)}, "input_ids", "(1, 4)", "int64 [T]"),
    ({"input_ids": torch.zeros(0, dtype=torch.int64)}, "input_ids", "(0,)", "T >= 1"),
    ({"input_ids": torch.tensor([0, 1, 2, 10])}, "input_ids", "ids in [0, 10]", "[0, 10)"),
    ({"input_ids": torch.tensor([0, -1, 2, 9])}, "input_ids", "ids in [-1, 9]", "[0, 10)"),
    ({"loss_mask": None}, "loss_mask", "missing", "a tensor"),
    ({"loss_mask": torch.ones(3)}, "loss_mask", "shape (3,)", "shape (4,) like input_ids"),
    ({"loss_mask": torch.tensor([0, 1, 2, 0])}, "loss_mask", "values other than 0 and 1", "0 or 1"),
    ({"hidden_state": torch.randn(4, 5)}, "hidden_state", "(4, 5)", "floating point (4, 6)"),
    ({"hidden_state": torch.randn(3, 6)}, "hidden_state", "(3, 6)", "(4, 6)"),
    ({"hidden_state": torch.ones(4, 6, dtype=torch.int64)}, "hidden_state", "int64", "floating point"),
    ({"target": None}, "target", "missing", "a tensor"),
    ({"target": NAN}, "target", "NaN or Inf", "finite values"),
    ({"target": INF}, "target", "NaN or Inf", "finite values"),
    ({"loss_mask": torch.ones(4, dtype=torch.complex64)}, "loss_mask", "torch.complex64", "bool, integers, or floats"),
    ({"loss_mask": torch.ones(4).to(torch.float8_e4m3fn)}, "loss_mask", "float8_e4m3fn", "bool, integers, or floats"),
    ({"hidden_state": torch.ones(4, 6).to(torch.float8_e5m2)}, "hidden_state", "torch.float8_e5m2", "16 bits and more"),
]
NOT_IN_SAFETENSORS = [
    ({"input_ids": [0, 1, 2, 3]}, "input_ids", "list", "a tensor"),
    ({"input_ids": "0123"}, "input_ids", "str", "a tensor"),
    ({"input_ids": torch.arange(4).to_sparse()}, "input_ids", "torch.sparse_coo", "plain tensor"),
    ({"input_ids": torch.arange(4, device="meta")}, "input_ids", "meta", "plain tensor"),
    ({"loss_mask": torch.ones(4).to_sparse()}, "loss_mask", "torch.sparse_coo", "plain tensor"),
    ({"hidden_state": torch.ones(4, 6).to_sparse_csr()}, "hidden_state", "torch.sparse_csr", "plain tensor"),
    ({"hidden_state": torch.empty(4, 6, device="meta")}, "hidden_state", "meta", "plain tensor"),
    ({"target": torch.nested.nested_tensor([torch.ones(2)] * 4)}, "target", "nested", "plain tensor"),
]


@pytest.mark.parametrize(("change", "field", "found", "expected"), [*BAD, *NOT_IN_SAFETENSORS])
def test_a_bad_field_is_refused(write, refuses, change, field, found, expected):
    path = write(**change)
    with refuses(path, field, found, expected):
        read_record(path, WIDTHS, 10)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), "text", 7])
def test_a_file_that_holds_no_dict_is_refused(tmp_path, refuses, content):
    torch.save(content, tmp_path / "a.ckpt")
    with refuses(tmp_path / "a.ckpt", "file", type(content).__name__, "a dict of tensors"):
        read_record(tmp_path / "a.ckpt", WIDTHS, 10)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (self.path,)


@pytest.mark.parametrize(
    ("save", "found"),
    [
        (torch.save, "a pickle that calls posix.mknod"),
        (lambda value, path: path.write_bytes(pickle.dumps({"a": value["target"]}, 2)), "a pickle that calls posix."),
        (lambda value, path: path.write_bytes(pickle.dumps(value)), "a pickle of more than tensors"),
    ],
)
def test_a_record_cannot_run_code(tmp_path, refuses, save, found):
    path, trace = tmp_path / "a.ckpt", tmp_path / "executed"
    save({**good(), "target": Touch(str(trace))}, path)
    with refuses(path, "file", found, "a torch file of plain tensors") as refusal:
        read_record(path, WIDTHS, 10)
    assert not trace.exists()
    assert "weights_only" not in str(refusal.error), "torch's advice is to load it unsafely"


def test_a_record_that_wants_gradients_gives_none(write):
    read = read_record(write(target=torch.nn.Parameter(torch.ones(4, 2))), WIDTHS, 10)
    assert not read["target"].requires_grad


def test_a_missing_and_a_truncated_file_are_refused(tmp_path, write, refuses):
    with refuses(tmp_path / "no.ckpt", "file", "No such file", "a torch file"):
        read_record(tmp_path / "no.ckpt", WIDTHS, 10)
    path = write()
    path.write_bytes(path.read_bytes()[:200])
    with refuses(path, "file", "", "a torch file of plain tensors"):
        read_record(path, WIDTHS, 10)


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=80) | st.binary(max_size=40).map(lambda tail: b"\x80\x02" + tail))
def test_no_bytes_at_all_raise_anything_but_an_input_error(tmp_path, content):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_record(path, WIDTHS, 10)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(min_value=0), value=st.integers(0, 255))
def test_a_flipped_byte_gives_a_record_or_an_input_error(write, position, value):
    path = write()
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert set(read_record(path, WIDTHS, 10)) == set(good())


def test_files_come_in_natural_order_from_all_folders(tmp_path):
    names = ["data_10.ckpt", "data_2.ckpt", "10/data_1.ckpt", "9/data_3.ckpt", "9/data_20.ckpt", "notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in list_records(tmp_path)]
    assert found == ["9/data_3.ckpt", "9/data_20.ckpt", "10/data_1.ckpt", "data_2.ckpt", "data_10.ckpt"]


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_numbers_in_names_count_as_numbers(numbers):
    paths = [Path(f"data_{number}.ckpt") for number in numbers]
    assert sorted(paths, key=natural_key) == [Path(f"data_{number}.ckpt") for number in sorted(numbers)]


@given(st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1)))
def test_every_file_name_can_be_sorted(names):
    paths = [Path(name) for name in names]
    keys = [natural_key(path) for path in sorted(paths, key=natural_key)]
    assert keys == sorted(keys)


def test_a_missing_or_empty_directory_is_refused(tmp_path, refuses):
    with refuses(tmp_path / "no", "tmpdir", "no such directory", "a directory of records"):
        list_records(tmp_path / "no")
    with refuses(tmp_path, "tmpdir", "no *.ckpt or *.safetensors", "at least one record"):
        list_records(tmp_path)
