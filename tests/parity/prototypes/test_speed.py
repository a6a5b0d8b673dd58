"""Throughput: the verdict on made-up timings, and one port that really is slow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ports.training.loop
from parity.prototypes.case import Case
from parity.prototypes.speed import judge_speed, live_timings, measure, port_steps, reference_steps, speed_case, summary
from parity.timing import Timings
from tests.parity.prototypes.test_synthetic import Shape, make


def timings(first: float, second: float) -> Timings:
    return Timings([[first, first]] * 3, [[second, second]] * 3, 2000, 1000)


@pytest.mark.parametrize(("first", "second"), [(1.0, 1.0), (1.0, 0.1), (1.0, 1.1)])
def test_at_most_a_tenth_slower_passes(first: float, second: float, case: Case) -> None:
    assert judge_speed(case, timings(first, second), "reference")[0].passed


@pytest.mark.parametrize(("first", "second"), [(1.0, 1.12), (1.0, 5.0)])
def test_slower_fails(first: float, second: float, case: Case) -> None:
    row, _ = judge_speed(case, timings(first, second), "reference")
    assert not row.passed
    assert row.measured == pytest.approx(second / first)
    assert f"throughput is {first / second:.2f}x the reference's" in row.detail


def test_the_summary_is_per_optimizer_step(case: Case) -> None:
    speed = summary(case, timings(3.0, 1.5), "original")
    assert (speed.prototype, speed.port, speed.ratio) == ("original", "port", 2.0)
    assert speed.prototype_seconds == (3.0,) * 3
    assert (speed.prototype_flops, speed.port_flops) == (1000, 500)
    assert speed.tokens == 0


def test_tokens_are_those_of_a_step() -> None:
    with speed_case("hass") as case:
        assert summary(case, timings(1.0, 1.0), "reference").tokens == (160 + 192 + 176 + 144) // 2
        assert case.algorithm == "hass"


@pytest.fixture
def small(tmp_path: Path) -> Case:
    return make(Shape("any"), tmp_path, bs=2, epoch=0)


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_a_slow_port_is_caught(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that burns a second of CPU time a step, against one that does not."""
    small = make(Shape("any"), tmp_path, algorithm=algorithm, bs=2, epoch=0)
    honest = judge_speed(small, measure(small, steps=2, rounds=2), "reference")[0].measured
    old = ports.training.loop.Loop.optimizer_steps

    def slow(self: ports.training.loop.Loop) -> Iterator[int]:
        for step in old(self):
            end = time.thread_time() + 0.5
            while time.thread_time() < end:
                pass
            yield step

    monkeypatch.setattr(ports.training.loop.Loop, "optimizer_steps", slow)
    row, _ = judge_speed(small, measure(small, steps=2, rounds=1), "reference")
    assert not row.passed
    assert row.measured is not None
    assert honest is not None
    assert row.measured > 3 * honest


def test_both_sides_take_the_same_steps(small: Case, tmp_path: Path) -> None:
    assert [len(list(start())) for start in (reference_steps(small), port_steps(small, tmp_path / "out"))] == [3, 3]


def test_flops_of_both_sides_are_counted(small: Case) -> None:
    taken = measure(small, steps=1, rounds=1)
    assert taken.first_flops > taken.second_flops > 0


def test_a_live_run_without_a_checkout_says_so(small: Case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found"):
        live_timings(small, tmp_path / "nowhere")
