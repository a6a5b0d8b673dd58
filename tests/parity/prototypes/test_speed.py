"""Throughput of the ports: both sides take the same steps, and a port that sleeps or computes more is caught."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ports.training.loop
from parity.prototypes.case import Case
from parity.prototypes.speed import Measured, measure, measure_live, port_steps, reference_steps, speed_case
from parity.speed import Baseline
from parity.verdict import Against, Status
from tests.parity.prototypes.test_synthetic import Shape, make

Wait = Callable[[float], None]


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.fixture
def small(tmp_path: Path) -> Case:
    return make(Shape("any"), tmp_path, bs=2, epoch=0)


@pytest.fixture(scope="module")
def honest() -> Iterator[tuple[Case, Measured]]:
    with speed_case() as case:
        yield case, measure(case, steps=2, rounds=3)


def slowed(monkeypatch: pytest.MonkeyPatch, wait: Wait, seconds: float) -> None:
    old = ports.training.loop.Loop.optimizer_steps

    def slow(self: ports.training.loop.Loop) -> Iterator[int]:
        for step in old(self):
            wait(seconds)
            yield step

    monkeypatch.setattr(ports.training.loop.Loop, "optimizer_steps", slow)


def test_the_port_as_it_is_passes(honest: tuple[Case, Measured]) -> None:
    case, measured = honest
    rows = measured.rows(case, Baseline(Path("b.json"), {case.name: measured.figure}))
    assert [(row.status, row.against) for row in rows] == [
        (Status.PASSED, Against.REFERENCE),
        (Status.PASSED, Against.REFERENCE),
        (Status.PASSED, Against.ITSELF),
    ]
    speed = measured.speed(case)
    assert speed.tokens == (160 + 192 + 176 + 144 + 192 + 128) // 3
    assert speed.prototype_flops > speed.port_flops > 0


@pytest.mark.parametrize(("wait", "clock"), [(time.sleep, "wall"), (burn, "CPU")])
def test_a_slow_port_is_caught(
    wait: Wait, clock: str, honest: tuple[Case, Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, wait, 0.3)
    rows = measure(honest[0], steps=2, rounds=2).rows(honest[0])
    assert clock in [row.tensor.split()[0] for row in rows if row.status is Status.FAILED]


def test_a_quarter_more_cpu_time_fails_the_second_gate(
    honest: tuple[Case, Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, measured = honest
    slowed(monkeypatch, burn, 0.25 * measured.times["port"].best("CPU") / 2)
    row = measure(case, steps=2, rounds=3).rows(case, Baseline(Path("b.json"), {case.name: measured.figure}))[-1]
    assert row.status is Status.FAILED


def test_both_sides_take_the_same_steps(small: Case, tmp_path: Path) -> None:
    assert [len(list(start())) for start in (reference_steps(small), port_steps(small, tmp_path))] == [3, 3]


def test_a_live_run_without_a_checkout_says_so(small: Case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found"):
        measure_live(small, tmp_path / "nowhere")
