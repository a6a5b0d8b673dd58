"""Records in safetensors: read like the prototypes' pickles, and refused as plainly."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ports.errors import InputError
from ports.generate.records import write_record
from ports.training.data.record_info import KEY, RecordInfo
from ports.training.data.records import list_records, read_record, recorded_info
from tests.ports.training.data.test_records import BAD, WIDTHS, good

INFO = RecordInfo(
    algorithm="eagle3",
    verifier="0123456789abcdef",
    tokenizer="fedcba9876543210",
    feature_layers=(3, 4, 5),
    loss_mask="exact",
    chat_template="plain",
    row=0,
)


@pytest.fixture
def write(tmp_path):
    def to_file(name="data_0.safetensors", info=INFO, metadata=None, **changes):
        tensors = {key: value for key, value in {**good(), **changes}.items() if isinstance(value, torch.Tensor)}
        file = tmp_path / name
        save_file(tensors, file, info.as_metadata() if metadata is None else metadata)
        return file

    return to_file


def test_a_written_record_comes_back_as_it_was(tmp_path) -> None:
    record, file = good(), tmp_path / "data_0.safetensors"
    write_record(file, record, INFO)
    read = read_record(file, WIDTHS, 10)
    assert set(read) == set(record)
    assert all(torch.equal(read[name], record[name]) for name in record)
    assert recorded_info([file]) == INFO


def test_both_kinds_are_listed_together_and_partial_files_are_not(write, tmp_path) -> None:
    write("data_10.safetensors")
    torch.save(good(), tmp_path / "data_9.ckpt")
    (tmp_path / ".data_1.safetensors.partial").touch()
    (tmp_path / ".data_2.safetensors").touch()
    files = list_records(tmp_path)
    assert [file.name for file in files] == ["data_9.ckpt", "data_10.safetensors"]
    assert recorded_info(files) == INFO
    assert recorded_info(files[:1]) is None


@pytest.mark.parametrize(("change", "field", "found", "expected"), BAD)
def test_a_bad_field_is_refused(write, refuses, change, field, found, expected) -> None:
    file = write(**change)
    if "fields present" in expected:
        expected = "a tensor (fields present:"
    with refuses(file, field, found, expected):
        read_record(file, WIDTHS, 10)


METADATA = [
    ({}, KEY, "metadata []", "a record that speculator-generate wrote"),
    ({"format": "pt"}, KEY, "['format']", "a record that speculator-generate wrote"),
    ({KEY: "{"}, KEY, "", "Invalid JSON"),
    ({KEY: "{}"}, f"{KEY}.algorithm", "", "Field required"),
    ({KEY: json.dumps(INFO.model_dump() | {"row": "x"})}, f"{KEY}.row", "'x'", "valid integer"),
    ({KEY: json.dumps(INFO.model_dump() | {"schema_version": 2})}, "schema_version", "2", "written by a newer release"),
    ({KEY: json.dumps(INFO.model_dump() | {"schema_version": 0})}, "schema_version", "0", "1..1"),
]


@pytest.mark.parametrize(("metadata", "field", "found", "expected"), METADATA)
def test_bad_metadata_is_refused(write, refuses, metadata, field, found, expected) -> None:
    file = write(metadata=metadata)
    with refuses(file, field, found, expected):
        read_record(file, WIDTHS, 10)


OTHERS = [
    ({"verifier": "ffffffffffffffff"}, "verifier", "ffffffffffffffff", "0123456789abcdef"),
    ({"feature_layers": (2, 3, 4)}, "feature_layers", "[2, 3, 4]", "[3, 4, 5]"),
]


@pytest.mark.parametrize(("change", "field", "found", "expected"), OTHERS)
def test_a_record_of_another_kind_is_refused(write, refuses, change, field, found, expected) -> None:
    file = write(info=INFO.model_copy(update=change))
    read_record(file, WIDTHS, 10)
    with refuses(file, field, found, expected):
        read_record(file, WIDTHS, 10, INFO)


def test_a_pickle_under_the_name_is_never_run(tmp_path, refuses) -> None:
    file = tmp_path / "data_0.safetensors"
    torch.save(good(), file)
    with refuses(file, "file", "", "a whole safetensors file"):
        read_record(file, WIDTHS, 10)


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutant_gives_a_record_or_an_input_error(write, tmp_path, data) -> None:
    content = bytearray(write("whole.safetensors").read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    file = tmp_path / "mutant.safetensors"
    file.write_bytes(content)
    with contextlib.suppress(InputError):
        assert set(read_record(file, WIDTHS, 10)) == set(good())
