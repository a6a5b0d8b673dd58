"""``parity``: exit codes, messages and the files it writes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import parity.cli
from parity.pair import Pair
from parity.run import KitReport, Options
from parity.verdict import Report, Row, Skip, Status
from tests.parity.faults import FAULTS
from tests.parity.folders import META, make_fixture, write_meta

Run = Callable[..., int]


def one_row(status: Status) -> Report:
    return Report(rows=[Row("forward", "one", "port", "logits", "mb0.step0.logits", 1.0, 2.0, status)])


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Options]]:
    """What was asked of the run, which passes without running anything."""
    asked: list[tuple[list[str], Options]] = []

    def run_all(pairs: list[Pair], options: Options, progress: object) -> KitReport:
        asked.append(([pair.name for pair in pairs], options))
        return KitReport(one_row(Status.PASSED))

    monkeypatch.setattr(parity.cli, "run_all", run_all)
    return asked


@pytest.mark.parametrize(
    ("report", "code"),
    [
        (one_row(Status.PASSED), 0),
        (one_row(Status.FAILED), 1),
        (one_row(Status.BLOCKED), 1),
        (Report(), 1),
        (Report(skips=[Skip("original", "one", "no checkout", "clone it")]), 1),
    ],
)
def test_the_exit_code_is_the_verdict(
    report: Report, code: int, command: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parity.cli, "run_all", lambda pairs, options, progress: KitReport(report))
    assert command("run") == code
    assert ("PASS" in capsys.readouterr().out) == (code == 0)


@pytest.mark.parametrize("option", ["--original", "--prototype"])
def test_options_reach_the_run(option: str, command: Run, verdicts: list[Any], tmp_path: Path) -> None:
    words = ("--recordings", tmp_path, "-k", "fp32 and not k4", "--checks", "loss,curve")
    assert command("run", "hass", option, "checkout", *words) == 0
    assert verdicts == [(["hass"], Options(Path("checkout"), tmp_path, "fp32 and not k4", ("loss", "curve")))]


def test_without_a_name_both_are_run(command: Run, verdicts: list[Any]) -> None:
    command("run")
    assert verdicts == [(["eagle3", "hass"], Options())]


def test_files_are_written(command: Run, verdicts: list[Any], tmp_path: Path) -> None:
    assert command("run", "--json", tmp_path / "rows.json", "--report", tmp_path / "report.html") == 0
    assert "mb0.step0.logits" in (tmp_path / "rows.json").read_text()
    assert json.loads((tmp_path / "rows.json").read_text())
    assert (tmp_path / "report.html").read_text().lower().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nosuch"], "error: command line: PAIR: found nosuch, expected eagle3, hass or FILE.py:NAME"),
        (["run", "--recordings", "/no/where"], "error: /no/where: recordings: found no such folder"),
        (["run", "--json", "/no/where/rows.json"], "error: /no/where/rows.json: --json: found no folder /no/where"),
        (["run", "--report", "/no/where/x.html"], "error: /no/where/x.html: --report: found no folder /no/where"),
        (
            ["others", "--eagle", "x"],
            "command line: others: found a command that went, expected parity run examples/pairs/",
        ),
        (["record", "--prototype", "/no", "--output", "/proc/no"], "error: /proc/no: --output: found "),
        (["run", "-k", "a b"], "error: command line: -k: found 'a b', expected words joined by and, or, not"),
        (["run", "-k", "__import__('os')"], "error: command line: -k: found"),
        (["record", "--prototype", "/no/where", "--output", "{tmp}", "-k", "eagle3_fp32_k1"], "research/eagle3"),
        (["record", "eagle3"], "--original: found nothing, expected a checkout: git clone"),
        (["run", "eagle3", "--checks", "speed", "-k", "none"], "checks: found speed, expected of environment"),
        (["doctor", "--prototype", "/no/where"], "research/eagle3: found no such folder"),
    ],
)
def test_bad_input_exits_with_two_and_one_line(
    words: list[str], message: str, command: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*(word.replace("{tmp}", str(tmp_path)) for word in words)) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.startswith("error: ")
    assert "Traceback" not in complaint


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, "nobody reads the output"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: the system: found [Errno 28] No space left"),
    ],
)
def test_what_goes_wrong_outside_is_a_line(
    error: BaseException, code: int, said: str, command: Run, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def broken(*arguments: object) -> KitReport:
        raise error

    monkeypatch.setattr(parity.cli, "run_all", broken)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored afterwards
    assert command("run") == code
    assert capfd.readouterr().err.strip().startswith(said)


@pytest.mark.parametrize("words", [["run", "--nosuch"], ["nosuch"], ["trace"], ["run", "a", "b"]])
def test_a_command_line_that_cannot_be_read_exits_with_two(
    words: list[str], command: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*words) == 2
    assert "Usage:" in capsys.readouterr().err


def test_help_exits_with_zero(command: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("run", "--help") == 0
    assert "--recordings" in capsys.readouterr().out


def test_the_doctor_exits_with_zero(command: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("doctor") == 0
    assert "no checkout given" in capsys.readouterr().out


def test_a_keyword_that_fits_nothing_is_a_failure(command: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("run", "-k", "no_such_case_anywhere") == 1
    assert "Nothing was compared" in capsys.readouterr().out


def test_a_broken_recording_is_named(command: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_fixture(tmp_path)
    write_meta(tmp_path / "one", {**META, "dtype": "fp8"})
    assert command("run", "--recordings", tmp_path) == 2
    assert "one/meta.json: dtype: found 'fp8'" in capsys.readouterr().err


def test_a_recorded_case_passes(command: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("run", "eagle3", "-k", "eagle3_fp32_k1", "--json", tmp_path / "rows.json") == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["case"] for row in rows} == {"eagle3_fp32_k1"}
    assert {row["run"] for row in rows} == {"reference", "port"}
    assert all(row["passed"] for row in rows if row["status"] != "not applicable")


def test_a_port_with_a_fault_fails(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    next(fault for fault in FAULTS if fault.name == "residual un-normed").plant(monkeypatch)
    assert command("run", "eagle3", "-k", "eagle3_fp32_k1", "--json", tmp_path / "rows.json") == 1
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    failed = [row for row in rows if row["status"] == "failed"]
    assert {(row["check"], row["run"]) for row in failed} == {("forward", "port")}
    assert "outputs do not" in failed[0]["hint"]


def test_the_command_in_a_process_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "parity", "run", "nosuch"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr == "error: command line: PAIR: found nosuch, expected eagle3, hass or FILE.py:NAME\n"
    assert done.stdout == ""
