"""Throughput of the ports: both sides take the same steps, and a port that sleeps or computes more is caught."""

import time

import pytest

import ports.training.loop
from parity.prototypes.reference.loop import ReferenceRun, prepare
from parity.prototypes.speed import judged, measure, port_steps, speed_case
from parity.verdict import Against, Status
from tests.parity.prototypes.test_synthetic import Shape, make


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.fixture(scope="module")
def honest():
    with speed_case() as case:
        yield case, measure(case, steps=2, rounds=3)


def failing(case, times):
    """What is too slow."""
    report = judged(case, times)
    assert [row.against for row in report.rows] == [Against.REFERENCE, Against.REFERENCE]
    return [row.tensor for row in report.rows if row.status is Status.FAILED], report


def test_the_port_as_it_is_passes(honest):
    failed, report = failing(*honest)
    assert failed == []
    assert report.speeds[0].tokens == (160 + 192 + 176 + 144 + 192 + 128) // 3
    assert report.speeds[0].prototype_flops > report.speeds[0].port_flops > 0


@pytest.mark.parametrize(("wait", "named"), [(time.sleep, "wall time per step"), (burn, "CPU time per step")])
def test_a_slow_port_is_caught(wait, named, honest, monkeypatch):
    """By twice the reference's own seconds, by the clock that is to see it."""
    (case, times), old = honest, ports.training.loop.Loop.optimizer_steps
    seconds = times["reference"].best(named.partition(" ")[0])

    def slow(self):
        for step in old(self):
            wait(seconds)
            yield step

    monkeypatch.setattr(ports.training.loop.Loop, "optimizer_steps", slow)
    found, _ = failing(case, measure(case, steps=2, rounds=3))
    assert any(one.startswith(named) for one in found)


def test_both_sides_take_the_same_steps(tmp_path):
    small = make(Shape("any"), tmp_path, bs=2, epoch=0)
    assert len(list(port_steps(small, tmp_path)())) == len(list(ReferenceRun(prepare(small)).optimizer_steps())) == 3
