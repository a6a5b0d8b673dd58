"""A trace written here reads the same elsewhere; a damaged one is refused by file and field."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from parity.errors import InputError
from parity.persist import read_trace, write_trace
from parity.trace import Point, Trace
from tests.mutants import try_all


@pytest.fixture
def trace() -> Trace:
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
        configuration={"lr": 1e-3, "file": Path("x")},
        environment={"torch": "2.13.0"},
        trained=("w",),
        frozen=("v",),
        calls=("a#0",),
    )


def test_what_is_written_is_read(trace: Trace, tmp_path: Path) -> None:
    read = read_trace(write_trace(trace, tmp_path / "trace"))
    assert read.tensors.keys() == trace.tensors.keys()
    for name, value in trace.tensors.items():
        assert torch.equal(read.tensors[name], value)
        assert read.tensors[name].dtype == value.dtype
    assert repr(read.curve) == repr(trace.curve)
    assert (read.run, read.prints, read.trained, read.frozen) == ("port", ["Epoch 1"], ("w",), ("v",))
    assert (read.calls, read.environment, read.left_out) == (("a#0",), {"torch": "2.13.0"}, ())


def test_a_trace_does_without_what_is_left_out(trace: Trace, tmp_path: Path) -> None:
    read = read_trace(write_trace(trace.without(["init", "calls"]), tmp_path / "trace"))
    assert set(read.tensors) == {"mb0.grad.w", "after.w", "final.w"}
    assert (read.calls, read.left_out) == ((), ("init", "calls"))


def test_a_second_trace_replaces_the_first(trace: Trace, tmp_path: Path) -> None:
    write_trace(trace, tmp_path / "trace")
    trace.case = "two"
    write_trace(trace, tmp_path / "trace")
    assert read_trace(tmp_path / "trace").case == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9}, "trace.json: format_version: found 9, expected 1"),
        ({"dtype": None}, "trace.json: dtype: found None"),
        ({"curve": [{}]}, "trace.json: curve.0"),
        ({"calls": ["a#b"]}, "trace.json: calls: found 'a#b', expected module#number"),
        ({"left_out": ["all"]}, "trace.json: left_out.0: found 'all'"),
        ({"spare": 1}, "trace.json: spare: found 1"),
        ({"tensors": []}, "tensors.safetensors: after.w: found a tensor that trace.json does not list"),
        ({"tensors": ["x"]}, "tensors.safetensors: after.w"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str, trace: Trace, tmp_path: Path) -> None:
    file = write_trace(trace, tmp_path / "trace") / "trace.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError) as refused:
        read_trace(tmp_path / "trace")
    assert message in str(refused.value)


def test_a_missing_tensor_is_named(trace: Trace, tmp_path: Path) -> None:
    folder = write_trace(trace, tmp_path / "trace")
    save_file({"init.w": torch.eye(2)}, folder / "tensors.safetensors")
    with pytest.raises(InputError, match=r"after.w: found missing, expected the tensors that trace.json lists"):
        read_trace(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: trace: found no such folder"):
        read_trace(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["trace.json", "tensors.safetensors"])
def test_mutants_are_refused_or_compared(name: str, trace: Trace, tmp_path: Path) -> None:
    from parity import compare_traces

    folder = write_trace(trace, tmp_path / "trace")

    def read() -> None:
        compare_traces(trace, read_trace(folder))

    assert try_all(folder / name, read, tmp_path).refused > 0
