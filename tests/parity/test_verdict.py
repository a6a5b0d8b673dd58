"""The main job: what is run for which options, and what may never count as a pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fixtures
import parity.verdict
from parity.case import Case, read_case
from parity.errors import InputError
from parity.judge import PORT, REFERENCE, Side, judge, recorded_baseline
from parity.result import Report, Row, Speed, Status
from parity.runs.recorded import load_recorded
from parity.runs.timing import Timings
from parity.verdict import Options, verdict
from tests.parity.folders import META, make_fixture, write_meta


class Log:
    """Everything expensive, replaced by a note that it was asked for."""

    def __init__(self) -> None:
        self.cases: list[str] = []
        self.sides: list[str] = []
        self.speeds: list[str] = []
        self.spreads: list[str] = []

    def judge(self, cases: list[Case], baseline: Any, sides: tuple[Side, ...], progress: Any) -> Report:
        self.cases += [case.name for case in cases]
        self.sides = [side.name for side in sides]
        return Report(rows=[note("forward", case.name) for case in cases])

    @contextlib.contextmanager
    def speed_case(self, algorithm: str) -> Iterator[str]:
        yield algorithm

    def measure(self, case: str) -> Timings:
        self.speeds.append(case)
        return Timings([[1.0]], [[1.0]], 1, 1)

    def judge_spread(self, case: Case, spread: object) -> Row:
        self.spreads.append(case.name)
        return note("equivalence", case.name)


@contextlib.contextmanager
def raising_side(case: Case, expected: Any) -> Iterator[Any]:
    """A port that cannot run this case."""
    raise ZeroDivisionError("no step")
    yield


def test_a_port_that_raises_is_a_failed_row_and_the_others_are_still_judged(recordings: Path) -> None:
    cases = [read_case(recordings / name) for name in ("eagle3_fp32_k1", "hass_fp32_k1")]
    broken = Side("port", raising_side, lambda case: None if case.algorithm == "eagle3" else "not broken here")
    report = judge(cases, recorded_baseline, (broken, replace(REFERENCE, checks=("environment",))))
    assert [(row.case, row.run) for row in report.rows if not row.passed] == [("eagle3_fp32_k1", "port")]
    failed = next(row for row in report.rows if not row.passed)
    assert (failed.check, failed.status) == ("run", Status.FAILED)
    assert failed.detail.startswith("ZeroDivisionError: no step, at ")
    assert "test_verdict.py:" in failed.detail
    assert {row.case for row in report.rows if row.run == "reference"} == {case.name for case in cases}


@pytest.mark.parametrize("place", ["measure", "measure_spread"])
def test_speed_and_seeds_of_a_port_that_raises_are_failed_rows(
    log: Log, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("no step")

    monkeypatch.setattr(parity.verdict, place, fails)
    report = verdict(Options(recordings=fixtures.RECORDINGS, algorithms=("eagle3",)))
    failed = [row for row in report.rows if not row.passed]
    assert failed
    assert {row.detail.partition(", at ")[0] for row in failed} == {"ZeroDivisionError: no step"}


def note(check: str, case: str) -> Row:
    return Row(check, case, "port", "q", "t", 0.0, 1.0, Status.PASSED)


def speed_row(case: str, timings: Timings, prototype: str) -> tuple[Row, Speed]:
    return note("throughput", f"{case} {prototype}"), Speed(
        case, prototype, "port", (1.0,), (1.0,), 1, 1, 1.0, (1, 1), 1
    )


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    for name in ("judge", "speed_case", "measure", "judge_spread"):
        monkeypatch.setattr(parity.verdict, name, getattr(log, name))
    monkeypatch.setattr(parity.verdict, "measure_spread", lambda case: None)
    monkeypatch.setattr(parity.verdict, "judge_speed", speed_row)
    monkeypatch.setattr(parity.verdict, "live_timings", lambda case, checkout: Timings([[1.0]], [[1.0]], 1, 1))
    return log


def options(**changes: Any) -> Options:
    return replace(Options(fixtures.RECORDINGS, ("eagle3", "hass")), **changes)


def test_everything_is_run_by_default(log: Log) -> None:
    report = verdict(options())
    shipped = sorted(file.parent.name for file in fixtures.RECORDINGS.glob("*/meta.json"))
    assert sorted(log.cases) == shipped
    assert log.sides == ["reference", "port"]
    assert log.speeds == ["eagle3", "hass"]
    assert log.spreads == [name for name in log.cases if "bf16" in name]
    assert [skip.check for skip in report.skips] == ["original"]
    assert "git clone" in report.skips[0].remedy
    assert report.passed


def test_a_keyword_chooses_cases_and_timings_alike(log: Log) -> None:
    verdict(options(keyword="eagle3 and (k2 or throughput)"))
    assert log.cases == ["eagle3_fp32_k2", "eagle3_fp32_k2_warm"]
    assert log.speeds == ["eagle3"]
    verdict(options(keyword="bf16 and not eagle3"))
    assert log.spreads == ["hass_bf16_k3"]


def test_an_algorithm_leaves_the_other_alone(log: Log) -> None:
    verdict(options(algorithms=("hass",)))
    assert all(name.startswith("hass") for name in [*log.cases, *log.speeds, *log.spreads])
    assert log.cases


@pytest.mark.parametrize("prototype", [None, Path("checkout")])
def test_nothing_chosen_never_passes(prototype: Path | None, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that is in order compares nothing by itself."""
    monkeypatch.setattr(parity.verdict, "prototype_rows", lambda root, name: [note("environment", name)])
    assert not verdict(options(keyword="no_such_case", prototype=prototype)).passed


def test_recordings_of_the_other_algorithm_only_are_refused(log: Log, tmp_path: Path) -> None:
    make_fixture(tmp_path)
    write_meta(tmp_path / "one", META)
    assert verdict(options(recordings=tmp_path)).passed
    with pytest.raises(InputError, match="recordings: found no case of hass, expected at least one"):
        verdict(options(recordings=tmp_path, algorithms=("hass",)))


def test_with_a_checkout_the_original_runs_live(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity.verdict, "prototype_rows", lambda root, name: [note("environment", name)])
    monkeypatch.setattr(parity.verdict, "find_spec", lambda name: None)
    report = verdict(options(prototype=Path("checkout")))
    assert log.sides == ["reference", "port", "adapter"]
    assert [row.case for row in report.rows[:2]] == ["eagle3", "hass"]
    assert {row.case for row in report.rows if row.check == "throughput"} == {
        f"{name} {side}" for name in ("eagle3", "hass") for side in ("reference", "original")
    }
    assert "eagle3_bf16ds_k3" not in log.cases
    skip = next(skip for skip in report.skips if skip.case == "eagle3_bf16ds_k3")
    assert (skip.reason, skip.remedy) == ("DeepSpeed is not installed", "pip install -e '.[deepspeed]'")


def test_with_deepspeed_every_case_runs_live(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity.verdict, "prototype_rows", lambda root, name: [])
    monkeypatch.setattr(parity.verdict, "find_spec", lambda name: object())
    assert verdict(options(prototype=Path("checkout"))).skips == []
    assert "eagle3_bf16ds_k3" in log.cases


def test_progress_is_told(log: Log) -> None:
    lines: list[str] = []
    verdict(options(algorithms=("hass",)), lines.append)
    assert {"hass_throughput", "hass_bf16_k3 over seeds"} <= set(lines)


@pytest.fixture
def short() -> Case:
    return read_case(fixtures.RECORDINGS / "eagle3_fp32_k1")


def test_a_case_gives_rows_curves_and_flow(short: Case) -> None:
    report = judge([short])
    assert report.passed
    assert {row.run for row in report.rows} == {"reference", "port"}
    assert {(curve.run, curve.quantity) for curve in report.curves} == {
        (run, quantity) for run in ("prototype", "reference", "port") for quantity in ("loss", "grad_norm")
    }
    assert {flow.run for flow in report.gradient_flow} == {"reference", "port"}
    assert report.environment["torch"]
    assert report.deviations


def test_sides_that_do_not_apply_leave_a_note(cases: dict[str, Case]) -> None:
    report = judge([cases["eagle3_fp32_k3_ga2"]], sides=(PORT,))
    assert not report.rows
    assert not report.passed
    assert report.notes[0].startswith("eagle3_fp32_k3_ga2: port not compared. accumulation-wipe")
    half = judge([cases["eagle3_bf16ds_k3"]], sides=(REFERENCE,))
    assert "reference not compared" in half.notes[0]


def test_a_recording_seeded_otherwise_is_no_failure(short: Case) -> None:
    """The seed a recording was made with is the port's too."""
    seeded = replace(short, meta=short.meta.model_copy(update={"seed": 42}))
    with PORT.evidence(seeded, load_recorded(seeded)) as evidence:
        assert evidence.found.configuration["seed"] == evidence.expected.configuration["seed"] == 42
