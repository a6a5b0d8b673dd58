"""Groups of a trace; what is written here reads the same elsewhere; a damaged one is refused by file and field."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from parity import compare_traces
from parity.errors import InputError
from parity.trace import LargestError, Point, StepAudit, Trace, read_trace, write_trace
from tests.mutants import try_all


@pytest.fixture
def trace():
    """Everything a trace may hold, odd numbers too."""
    return Trace(
        run="port",
        case="one",
        dtype="fp32",
        tensors={
            "init.w": torch.eye(2),
            "mb0.call.a#0.out": torch.tensor([1.0, math.inf]),
            "mb0.grad.w": torch.eye(2).T,
            "after.w": torch.eye(2)[:, :1],
            "final.w": torch.zeros(2, dtype=torch.int64),
        },
        curve=[Point(0, math.nan, (1.0,), None, 1e-3, 5e-4, 3, 7, (3, 4), False, {"ploss": -math.inf})],
        prints=["Epoch 1"],
        configuration={"lr": 1e-3, "betas": [0.9, 0.95]},
        environment={"torch": "2.13.0"},
        trained=("w",),
        frozen=("v",),
        calls=("a#0",),
        audits=[StepAudit(1, None, 1e-3, 2.0, 1.0, 1, {"clip": LargestError("w", math.inf, (0, 1), 0.5, -math.inf)})],
    )


def test_what_is_written_is_read(trace, tmp_path):
    read = read_trace(write_trace(trace, tmp_path / "trace"))
    assert repr({**vars(read), "tensors": ()}) == repr({**vars(trace), "tensors": ()})
    assert read.tensors.keys() == trace.tensors.keys()
    for name, value in trace.tensors.items():
        assert torch.equal(read.tensors[name], value)
        assert read.tensors[name].dtype == value.dtype


def test_what_json_has_no_form_for_is_a_word(trace, tmp_path):
    trace.configuration = {"file": Path("x"), "limit": math.inf}
    assert read_trace(write_trace(trace, tmp_path / "trace")).configuration == {"file": "x", "limit": "Infinity"}


def test_a_trace_does_without_what_is_left_out(trace, tmp_path):
    read = read_trace(write_trace(trace.without(["init", "calls"]), tmp_path / "trace"))
    assert set(read.tensors) == {"mb0.grad.w", "after.w", "final.w"}
    assert (read.calls, read.left_out) == ((), ("init", "calls"))


def test_a_second_trace_replaces_the_first(trace, tmp_path):
    write_trace(trace, tmp_path / "trace")
    trace.case = "two"
    write_trace(trace, tmp_path / "trace")
    assert read_trace(tmp_path / "trace").case == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]


def test_a_trace_that_cannot_be_written_leaves_what_was_there(trace, tmp_path):
    write_trace(trace, tmp_path / "trace")
    (tmp_path / "file").write_text("mine")
    sparse = torch.eye(2).to_sparse()
    with pytest.raises(RuntimeError):
        write_trace(replace(trace, case="two", tensors={"sparse": sparse}), tmp_path / "trace")
    with pytest.raises(InputError, match=r"file: folder: found .* expected room and permission to write"):
        write_trace(trace, tmp_path / "file")
    assert read_trace(tmp_path / "trace").case == "one"
    assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"trace", "file"}


def changed(**change):
    def change_it(folder):
        whole = {**json.loads((folder / "trace.json").read_text()), **change}
        (folder / "trace.json").write_text(json.dumps({key: value for key, value in whole.items() if value != "gone"}))

    return change_it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(format_version=9), "trace.json: format_version: found 9, expected 1"),
        (changed(run=""), "trace.json: run: found ''"),
        (changed(dtype=None), "trace.json: dtype: found None"),
        (changed(trained="gone"), "trace.json: trained: found nothing"),
        (changed(curve=[{}]), "trace.json: curve.0"),
        (changed(calls=["a#b"]), "trace.json: calls.0: found 'a#b'"),
        (changed(left_out=["all"]), "trace.json: left_out.0: found 'all'"),
        (changed(audits=[{"step": 1}]), "trace.json: audits.0"),
        (changed(spare=1), "trace.json: spare: found 1"),
        (changed(tensors=[]), "tensors.safetensors: after.w: found a tensor that trace.json does not list"),
        (changed(tensors=["x"]), "tensors.safetensors: after.w"),
        (lambda folder: save_file({"init.w": torch.eye(2)}, folder / "tensors.safetensors"), "after.w: found missing"),
        (lambda folder: folder.rename(folder.with_name("elsewhere")), "trace: trace: found no such folder"),
    ],
)
def test_what_is_wrong_is_named(change, message, trace, tmp_path):
    change(write_trace(trace, tmp_path / "trace"))
    with pytest.raises(InputError) as refused:
        read_trace(tmp_path / "trace")
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["trace.json", "tensors.safetensors"])
def test_mutants_are_refused_or_compared(name, trace, tmp_path):
    folder = write_trace(trace, tmp_path / "trace")
    assert try_all(folder / name, lambda: compare_traces(trace, read_trace(folder)), tmp_path).refused > 0


def test_groups_and_micro_batches_are_read_from_the_names():
    names = ["mb10.loss", "mb2.loss", "mb2.step0.loss", "mb0.grad.mb7", "after.mb3.x", "aftermath", "mbx.loss", "mb5"]
    trace = Trace("port", "one", "fp32", dict.fromkeys(names, torch.ones(1)))
    assert set(trace.group("after.")) == {"mb3.x"}
    assert trace.group("final.") == {}
    assert trace.micro_batches() == [0, 2, 10]
