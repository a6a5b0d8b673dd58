"""A side that is a command in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from parity import Side, compare_sides
from parity.errors import InputError

SCRIPT = """
import sys, torch
from torch import nn
from parity import Side, trace_side, write_trace

class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.weight.data.copy_(torch.eye(3))
        self.bias.data.fill_(BIAS)

write_trace(trace_side(Side(Net), [torch.ones(2, 3)]), sys.argv[1])
"""


class Net(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)
        self.weight.data.copy_(torch.eye(3))
        self.bias.data.fill_(0.5)


def command(tmp_path: Path, bias: float) -> Side:
    (tmp_path / "side.py").write_text(SCRIPT.replace("BIAS", str(bias)))
    return Side.command([sys.executable, str(tmp_path / "side.py"), "{out}"], name="elsewhere")


def test_a_command_is_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
    report = compare_sides(command(tmp_path, 0.5), Side(Net), [torch.ones(2, 3)])
    report.raise_if_failed()
    assert report.report.baseline == "elsewhere"
    assert {row.check for row in report.rows} >= {"weights", "forward", "curve", "round_trip", "resume"}


def test_a_command_s_weights_go_to_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
    original, batches = command(tmp_path, 0.25), [torch.ones(2, 3)]
    compare_sides(original, Side(Net), batches).raise_if_failed()
    report = compare_sides(original, Side(Net), batches, copy_weights=False)
    assert report.failed == ("weights",)


def test_a_command_as_the_port_is_compared_as_far_as_its_trace_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
    report = compare_sides(Side(Net), command(tmp_path, 0.25), [torch.ones(2, 3)])
    assert report.failed == ("weights",)
    assert [skip.check for skip in report.report.skips] == ["round_trip", "resume"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["python"], "python: words: found"),
        (["/no/such/program", "{out}"], "/no/such/program: command: found"),
        ([sys.executable, "-c", "import sys; sys.exit('no room')", "{out}"], "exit code: found 1: no room, expected 0"),
        ([sys.executable, "-c", "pass", "{out}"], "trace: found no such folder"),
    ],
)
def test_a_command_that_fails_is_named(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as refused:
        compare_sides(Side.command(words), Side(Net), [torch.ones(2, 3)])
    assert message in str(refused.value)


def test_a_command_that_does_not_end_is_stopped() -> None:
    words = [sys.executable, "-c", "import time; time.sleep(60)", "{out}"]
    with pytest.raises(InputError, match="timed out"):
        compare_sides(Side.command(words, timeout=0.5), Side(Net), [torch.ones(2, 3)])
