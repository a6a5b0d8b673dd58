"""Records of both forms: read as they were written, refused where they are bad, and met in a run."""

import json
import math
import os
import pickle
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ports.eagle3 import train as eagle3
from ports.generate.records import write_record
from ports.generate.vocabulary import VocabularySettings, write_vocabulary
from ports.training.records import KEY, RecordInfo, list_records, parse_info, read_record
from ports.verifier.fingerprint import verifier_fingerprint
from tests.mutants import Bomb

WIDTHS = {"hidden_state": 6, "target": 2}
INFO = RecordInfo(
    algorithm="eagle3",
    verifier="0123456789abcdef",
    tokenizer="fedcba9876543210",
    feature_layers=(3, 4, 5),
    loss_mask="exact",
    chat_template="plain",
    row=0,
)


def good(length=4):
    return {
        "input_ids": torch.arange(length),
        "loss_mask": torch.tensor([0, 1] * (length // 2)),
        "hidden_state": torch.randn(length, 6),
        "target": torch.randn(length, 2),
    }


@pytest.fixture(params=["ckpt", "safetensors"])
def write(tmp_path, request):
    """Writes a good record with changes, in either form."""

    def to_file(info=INFO, metadata=None, **changes):
        record = {name: value for name, value in {**good(), **changes}.items() if value is not None}
        file = tmp_path / f"data_0.{request.param}"
        if request.param == "ckpt":
            torch.save(record, file)
        else:
            save_file(record, file, info.as_metadata() if metadata is None else metadata)
        return file

    return to_file


pickled = pytest.mark.parametrize("write", ["ckpt"], indirect=True)
mapped = pytest.mark.parametrize("write", ["safetensors"], indirect=True)


def test_the_size_of_a_record_tells_its_length_and_not_its_row(tmp_path):
    """Batches are grouped by it: alike with hidden states and without."""
    sizes, file = set(), tmp_path / "data_0.safetensors"
    for row in (9, 10, 100, 10**9):
        write_record(file, good(), INFO.model_copy(update={"row": row}))
        assert parse_info(file, safe_open(file, "pt").metadata()).row == row
        sizes.add(file.stat().st_size)
    assert len(sizes) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_good_record_comes_back_as_it_was(write, dtype):
    record = {**good(), "target": torch.nn.Parameter(torch.randn(4, 2, dtype=dtype))}
    read = read_record(write(**record), WIDTHS, 10)
    assert set(read) == set(record)
    assert all(torch.equal(read[name], record[name]) for name in record)
    assert (read["target"].dtype, read["target"].requires_grad) == (dtype, False)


BAD = [
    ({"input_ids": None}, "input_ids", "missing", "a tensor (fields present: loss_mask, hidden_state, target)"),
    ({"input_ids": torch.arange(4).float()}, "input_ids", "float32", "int64 [T]"),
    ({"input_ids": torch.zeros(0, dtype=torch.int64)}, "input_ids", "(0,)", "T >= 1"),
    ({"input_ids": torch.tensor([0, 1, 2, 10])}, "input_ids", "ids in [0, 10]", "[0, 10)"),
    ({"input_ids": torch.tensor([0, -1, 2, 9])}, "input_ids", "ids in [-1, 9]", "[0, 10)"),
    ({"loss_mask": torch.ones(3)}, "loss_mask", "shape (3,)", "shape (4,) like input_ids"),
    ({"loss_mask": torch.tensor([0, 1, 2, 0])}, "loss_mask", "values other than 0 and 1", "0 or 1"),
    ({"hidden_state": torch.randn(4, 5)}, "hidden_state", "(4, 5)", "floating point (4, 6)"),
    ({"target": None}, "target", "missing", "a tensor"),
    *(
        ({"hidden_state": torch.ones(4, 6).index_fill(0, torch.tensor(3), value)}, "hidden_state", "NaN or Inf", "fin")
        for value in (math.nan, math.inf, -math.inf)
    ),
    ({"loss_mask": torch.ones(4).to(torch.float8_e4m3fn)}, "loss_mask", "float8_e4m3fn", "bool, integers, or floats"),
    ({"hidden_state": torch.ones(4, 6).to(torch.float8_e5m2)}, "hidden_state", "torch.float8_e5m2", "16 bits and more"),
]


def holed(rows, columns=slice(None), value=0.0):
    """Features with the same number at ``rows`` and ``columns``."""
    features = torch.randn(4, 6)
    features[rows, columns] = value
    return {"hidden_state": features}


ROWS = [
    (holed(slice(None)), "hidden_state", "the same number, 0.0, in all of row 0's layer 0", "the verifier's states"),
    (holed(slice(2, 4)), "hidden_state", "the same number, 0.0, in all of row 2's layer 0", "the verifier's states"),
    (holed(3, slice(2, 4)), "hidden_state", "in all of row 3's layer 1", "the verifier's states"),
    (holed(1, slice(4, 6), 7.5), "hidden_state", "the same number, 7.5, in all of row 1's layer 2", "the verifier's"),
    (
        {"target": torch.zeros(4, 2)},
        "target",
        "the same number, 0.0, in all of row 0's layer 0",
        "the verifier's states",
    ),
    ({"target": torch.randn(4, 2)[[0, 1, 2, 1]]}, "target", "row 1 again as row 3, of another token", "a state of its"),
    (
        {"hidden_state": torch.randn(1, 6).repeat(4, 1)},
        "hidden_state",
        "row 0 again as row 1, of another token",
        "a st",
    ),
]
NOT_IN_SAFETENSORS = [
    ({"input_ids": [0, 1, 2, 3]}, "input_ids", "list", "a tensor"),
    ({"loss_mask": torch.ones(4).to_sparse()}, "loss_mask", "a sparse", "plain tensor"),
    ({"hidden_state": torch.ones(4, 6).to_sparse_csr()}, "hidden_state", "a sparse", "plain tensor"),
    ({"hidden_state": torch.empty(4, 6, device="meta")}, "hidden_state", "meta", "plain tensor"),
    ({"target": torch.nested.nested_tensor([torch.ones(2)] * 4)}, "target", "nested", "plain tensor"),
]


@pytest.mark.parametrize(("change", "field", "found", "expected"), BAD + ROWS)
def test_a_bad_field_is_refused(write, refuses, change, field, found, expected):
    path = write(**change)
    if path.suffix == ".safetensors":  # names its fields in an order of its own
        expected = expected.split("fields present")[0]
    with refuses(path, field, found, expected):
        read_record(path, WIDTHS, 10)


@pytest.mark.parametrize(("change", "field", "found", "expected"), ROWS)
def test_rows_that_no_verifier_computes_are_not_written(tmp_path, refuses, change, field, found, expected):
    with refuses(tmp_path / "a.safetensors", field, found, expected):
        write_record(tmp_path / "a.safetensors", {**good(), **change}, INFO)
    assert not any(tmp_path.iterdir())


def test_rows_that_tokens_explain_may_be_the_same(write):
    """The first tokens where all are one, and those of an answer that says one thing for ever."""
    features, ids = torch.randn(8, 6).bfloat16(), torch.tensor([1, 1, 2, 3, 2, 3, 2, 3])
    rows = [0, 0, 1, 2, 3, 2, 3, 2]
    changes = {"input_ids": ids, "loss_mask": torch.ones(8), "hidden_state": features[rows]}
    read_record(write(**changes, target=torch.randn(8, 2)), WIDTHS, 10)


@pickled
@pytest.mark.parametrize(("change", "field", "found", "expected"), NOT_IN_SAFETENSORS)
def test_what_only_a_pickle_can_hold_is_refused(write, refuses, change, field, found, expected):
    path = write(**change)
    with refuses(path, field, found, expected):
        read_record(path, WIDTHS, 10)


NO_RECORDS = [
    ("a.ckpt", lambda path: torch.save([1, 2], path), "list", "a dict of tensors"),
    ("a.safetensors", lambda path: torch.save(good(), path), "", "a whole file of plain tensors"),
    ("a.ckpt", Path.mkdir, "directory", "a whole file of plain tensors"),
    ("a.ckpt", lambda path: path.symlink_to("nothing"), "No such file", "a whole file of plain tensors"),
]


@pytest.mark.parametrize(("name", "put", "found", "expected"), NO_RECORDS)
def test_what_is_no_record_is_refused(tmp_path, refuses, name, put, found, expected):
    put(tmp_path / name)
    with refuses(tmp_path / name, "file", found, expected):
        read_record(tmp_path / name, WIDTHS, 10)


SAVES = [
    torch.save,
    lambda value, path: path.write_bytes(pickle.dumps({"a": value["target"]}, 2)),
    lambda value, path: path.write_bytes(pickle.dumps(value)),
]


@pytest.mark.parametrize("save", SAVES)
def test_a_record_cannot_run_code(tmp_path, refuses, save):
    path, trace = tmp_path / "a.ckpt", tmp_path / "executed"
    save({**good(), "target": Bomb(trace)}, path)
    with refuses(path, "file", "a pickle of more than tensors", "a whole file of plain tensors") as refusal:
        read_record(path, WIDTHS, 10)
    assert not trace.exists()
    assert "weights_only" not in str(refusal.value), "torch's advice is to load it unsafely"


METADATA = [
    ({"format": "pt"}, KEY, "['format']", "a record that speculator records wrote"),
    ({KEY: "{"}, KEY, "", "Invalid JSON"),
    ({KEY: "{}"}, f"{KEY}.algorithm", "", "Field required"),
    ({KEY: json.dumps(INFO.model_dump() | {"schema_version": 3})}, f"{KEY}.schema_version", "3", "less than or equal"),
    ({KEY: json.dumps(INFO.model_dump() | {"schema_version": 1})}, f"{KEY}.schema_version", "1", "make it anew"),
]


@mapped
@pytest.mark.parametrize(("metadata", "field", "found", "expected"), METADATA)
def test_bad_metadata_is_refused(write, refuses, metadata, field, found, expected):
    file = write(metadata=metadata)
    with refuses(file, field, found, expected):
        read_record(file, WIDTHS, 10)


OTHERS = [
    ("algorithm", "hass"),
    ("verifier", "ffffffffffffffff"),
    ("tokenizer", "another"),
    ("loss_mask", "prototype"),
    ("feature_layers", (2, 4, 5)),
]


@mapped
@pytest.mark.parametrize(("field", "value"), OTHERS)
def test_a_record_of_another_kind_is_refused(write, refuses, field, value):
    """Without features, online and in counting tokens, ids and masks alone must be of one kind."""
    file = write(info=INFO.model_copy(update={field: value}))
    found, ids_alone = str(list(value)) if field == "feature_layers" else value, field in ("tokenizer", "loss_mask")
    read_record(file, WIDTHS, 10)
    for widths in (WIDTHS, {}):
        with refuses(file, field, found, ", as of the first record") if widths or ids_alone else nullcontext():
            read_record(file, widths, 10, INFO)


def test_files_come_in_natural_order_from_all_folders(tmp_path):
    """Other files are passed over, and so are links to directories; links to records are records."""
    names = "data_10.safetensors .data_1.safetensors.partial .data_2.safetensors notes.txt data_7.ckpt.tmp"
    for name in [*names.split(), "10/data_1.ckpt", "9/data_3.ckpt", "9/data_20.ckpt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "data_2.ckpt").symlink_to(tmp_path / "9" / "data_3.ckpt")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in list_records(tmp_path)]
    assert found == ["9/data_3.ckpt", "9/data_20.ckpt", "10/data_1.ckpt", "data_2.ckpt", "data_10.safetensors"]


def test_a_directory_that_is_missing_or_empty_or_holds_a_name_that_is_no_text_is_refused(tmp_path, refuses):
    with refuses(tmp_path / "no", "data", "no such directory", "a directory of records"):
        list_records(tmp_path / "no")
    with refuses(tmp_path, "data", "no *.ckpt or *.safetensors", "at least one record"):
        list_records(tmp_path)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/data_\xff.ckpt")).touch()
    with refuses(tmp_path, "data", r"the record b'data_\xff.ckpt'", "names in UTF-8"):
        list_records(tmp_path)


def as_safetensors(fixture, algorithm="eagle3", kind=None, dtype=None, **changes):
    """The fixture's pickles as safetensors of the given kind, floats in ``dtype``; returns their directory."""
    folder, layers = fixture / f"data_{algorithm}", (3, 5, 6) if algorithm == "eagle3" else ()
    common = {"verifier": verifier_fingerprint(str(fixture / "verifier")), "feature_layers": layers}
    common |= {"tokenizer": "none", "loss_mask": "exact", "chat_template": "plain"}
    for row, file in enumerate(list_records(folder)):
        record = torch.load(file, weights_only=True)
        floats = {name: value.to(dtype) for name, value in record.items() if dtype and value.is_floating_point()}
        info = RecordInfo(**{"algorithm": kind or algorithm, "row": row, **common, **changes})
        write_record(file.with_suffix(".safetensors"), record | floats, info)
        file.unlink()
    return folder


@pytest.mark.parametrize(("algorithm", "dtype"), [("eagle3", torch.float16), ("hass", None)])
def test_records_of_either_form_train_alike(run_to_the_end, fixture, tmp_path, algorithm, dtype):
    """Halves as the same numbers in float32 do, without noise, which is drawn in their dtype."""
    options = {"num_workers": 1, "noise": dtype is None}
    for file in (fixture / f"data_{algorithm}").iterdir() if dtype else ():
        read = torch.load(file)
        torch.save(read | {name: read[name].to(dtype).float() for name in WIDTHS}, file)
    pickles = run_to_the_end(algorithm, tmp_path / "a", **options)
    as_safetensors(fixture, algorithm, dtype=dtype)
    safetensors = run_to_the_end(algorithm, tmp_path / "b", **options)
    assert [name for name in safetensors.differs_from(pickles) if name != "state"] == []


def test_a_config_that_names_no_layers_takes_those_of_the_records(fixture, settings):
    as_safetensors(fixture, feature_layers=(1, 4, 6))
    assert eagle3.build(settings()).config.eagle_aux_hidden_state_layer_ids == [1, 4, 6]


ORIGINS = [
    ("eagle3", {"verifier": "ffffffffffffffff"}, "verifier", "ffffffffffffffff", "by --verifier"),
    ("hass", {"kind": "eagle3"}, "algorithm", "eagle3", "hass, by"),
    ("eagle3", {"feature_layers": (2, 4, 5)}, "feature_layers", "[2, 4, 5]", "[3, 5, 6], by"),
]


@pytest.mark.parametrize(("algorithm", "changes", "field", "found", "expected"), ORIGINS)
def test_records_that_do_not_fit_the_run_are_refused(
    start_run, fixture, settings, tmp_path, refuses, algorithm, changes, field, found, expected
):
    options = {}
    if field == "feature_layers":  # a config that names others
        eagle3.build(settings()).config.save_pretrained(fixture / "native")
        options = {"configpath": str(fixture / "native")}
    folder = as_safetensors(fixture, algorithm, **changes)
    with refuses(folder, field, found, expected):
        start_run(algorithm, tmp_path / "cp", **options)


def test_one_record_of_another_kind_among_many_is_met(start_run, fixture, settings, tmp_path, refuses):
    """In a run with features or without, and where tokens are counted."""
    folder = as_safetensors(fixture)
    first = list_records(folder)[0]
    info = parse_info(first, safe_open(first, "pt").metadata())
    write_record(folder / "data_99.safetensors", load_file(first), info.model_copy(update={"tokenizer": "another"}))
    counting = VocabularySettings(tmpdir=folder, basepath=settings().basepath, draft_vocab_size=8)
    with refuses(folder / "data_99.safetensors", "tokenizer", "another", "none, as of the first record"):
        write_vocabulary(counting)
    for online in (False, True):
        loop = start_run("eagle3", tmp_path / str(online), online=online)
        with refuses(folder / "data_99.safetensors", "tokenizer", "another", "none, as of the first record"):
            loop.run()
