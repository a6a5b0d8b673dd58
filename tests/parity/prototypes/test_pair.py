"""The prototypes' pairs: what is run for which options, and what may never count as a pass."""

from dataclasses import replace
from pathlib import Path

import pytest

import parity.prototypes.pair
from parity.checks import run_checks
from parity.compare import viewed
from parity.pair import Options, find_pair
from parity.prototypes.pair import REFERENCE, WIPE, adapter, live_original, port
from parity.prototypes.recorded import load_recorded
from parity.prototypes.spread import real_positions, spread_for
from parity.run import run_pair, sides_of
from parity.trace_pair import TracePair
from parity.verdict import Report, Row, Status
from tests.parity.folders import write_checkout

EAGLE3, HASS = find_pair("eagle3"), find_pair("hass")


@pytest.mark.parametrize("pair", [EAGLE3, HASS], ids=["eagle3", "hass"])
def test_every_cause_is_a_check_that_comes_before(pair):
    names = [check.name for check in pair.every_check]
    for number, check in enumerate(pair.every_check):
        assert set(check.follows) <= set(names[:number])


@pytest.mark.parametrize(
    ("name", "side", "runs"),
    [
        ("eagle3_fp32_k3", REFERENCE, True),
        ("eagle3_bf16ds_k3", REFERENCE, True),
        ("hass_bf16_k3", REFERENCE, True),
        ("eagle3_fp32_k3_ga2", REFERENCE, True),
        ("eagle3_fp32_k3_ga2", port(), True),
        ("hass_fp32_k3_ga2", port(afresh=True), True),
        ("eagle3_bf16ds_k3", port(), True),
        ("hass_bf16_k3", adapter(Path()), False),
        ("hass_fp32_k3", adapter(Path()), True),
    ],
)
def test_what_a_side_leaves_out_has_a_reason(name, side, runs, cases):
    assert (side.leaves_out(cases[name]) is None) is runs


@pytest.mark.parametrize("name", ["eagle3_fp32_k3_ga2", "hass_fp32_k3_ga2"])
def test_of_accumulated_cases_all_is_held_that_no_wiped_gradient_reaches(name, sound):
    """Both micro-batches of the first step; and every step by its rule."""
    held = sound(name)
    rows = run_checks(held, find_pair(held.case.algorithm).every_check)
    assert [row for row in rows if row.compared and not row.passed] == []
    silent = {row.check for row in rows if WIPE in row.detail}
    assert silent == {"gradients", "curve", "hits"} | ({"converted"} if "eagle3" in name else set())
    held_to = {"configuration", "schedule", "clip", "optimizer_step", "gradient_flow", "round_trip", "resume"}
    assert held_to <= {row.check for row in rows if row.compared}
    for check in ("batches", "targets", "forward", "loss"):
        assert {row.tensor.partition(".")[0] for row in rows if row.check == check} == {"mb0", "mb1"}
    assert not any(row.tensor.startswith("after.") for row in rows if row.check == "optimizer_step")


def test_deepspeed_is_asked_for_where_the_case_needs_it(cases, monkeypatch):
    monkeypatch.setattr(parity.prototypes.pair, "find_spec", lambda name: None)
    said = live_original(Path()).leaves_out(cases["eagle3_bf16ds_k3"])
    assert said == "DeepSpeed is not installed: pip install -e '.[deepspeed]'"
    assert live_original(Path()).leaves_out(cases["hass_bf16_k3"]) is None


def test_a_checkout_brings_the_live_original_and_the_adapter(tmp_path):
    assert [side.name for side in (EAGLE3.original, *sides_of(EAGLE3))] == ["recorded", "reference", "port"]
    live = EAGLE3.at(tmp_path, None)
    assert [side.name for side in (live.original, *sides_of(live))] == ["original", "reference", "adapter", "port"]
    assert live.port.run.keywords == {"afresh": True, "steps": None}
    assert live.every_check == EAGLE3.every_check


def test_files_that_are_not_the_commit_s_fail_one_by_one(tmp_path, monkeypatch):
    files = write_checkout(tmp_path, "eagle3")
    monkeypatch.setattr(parity.prototypes.pair, "without_deepspeed", lambda case: "not now")
    report = run_pair(EAGLE3, Options(tmp_path, keyword="fp32_k1"))
    assert {row.tensor for row in report.rows if row.status is Status.FAILED} == set(files)
    assert all("found" in row.detail for row in report.rows if row.check == "environment")


def test_throughput_is_a_job_of_its_own(monkeypatch):
    row = Row("throughput", "x", "port", "throughput", "time per step", 1.0, 1.1, Status.PASSED)
    pair = replace(HASS, jobs={name: lambda options: Report(rows=[row]) for name in HASS.jobs})
    assert run_pair(pair, Options(keyword="hass_throughput")).rows == [row]
    assert not run_pair(pair, Options(keyword="no_such_case")).passed


def evidence(case, run="port"):
    """A recording beside itself."""
    traces = load_recorded(case), replace(load_recorded(case), run=run)
    held = dict(EAGLE3.not_applicable)
    return TracePair(case, *traces, measure_spread=lambda: spread_for(case), not_applicable=held)


PADDED = "mb0.step1.logits"


def moved(held, padding):
    """Logits where there is padding, or where there is none."""
    real = real_positions(held.expected, PADDED)
    where = real != padding
    assert bool(where.any())
    held.found.tensors[PADDED] = held.expected.tensors[PADDED] + where[..., None]


def one_hit_more(place, ties):
    """In the eighth point, among the first ``place + 1`` choices alone, with so many near ties."""

    def tamper(held):
        point = held.found.curve[7]
        top = tuple(count + (each == place) for each, count in enumerate(point.top))
        held.found.curve[7] = replace(point, top=top, correct=point.correct + (place == 0), ties=(ties,) * 3)

    return tamper


@pytest.mark.parametrize(
    ("tamper", "checks", "failing"),
    [
        (lambda held: None, {"batches", "forward", "targets", "hits"}, set()),
        (
            lambda held: held.expected.tensors.pop("mb0.batch.attention_mask"),
            *[{"batches", "forward", "targets"}] * 2,
        ),
        (lambda held: moved(held, padding=True), {"forward"}, set()),
        (lambda held: moved(held, padding=False), {"forward"}, {"forward"}),
        *((one_hit_more(place, ties=0), {"hits"}, {"hits"}) for place in range(3)),
        *((one_hit_more(place, ties=1), {"hits"}, set()) for place in range(3)),
    ],
)
def test_a_recording_beside_a_tampered_one(tamper, checks, failing, case):
    """Without a mask nothing crashes, padding is nobody's business, and a hit too many needs a near tie."""
    held = evidence(case)
    tamper(held)
    held.expected, held.found = viewed(*held.traces, EAGLE3.views)
    assert {row.check for row in run_checks(held, only=checks) if row.compared and not row.passed} == failing


def test_the_reference_is_not_held_against_itself(case):
    names = ("configuration", "weights", "cross_step_grad")
    rows = run_checks(evidence(case, "reference"), only=names)
    assert [(row.check, row.status) for row in rows] == [(name, Status.NOT_APPLICABLE) for name in names]


@pytest.mark.parametrize("name", ["eagle3_bf16ds_k3", "hass_bf16_k3"])
def test_in_half_precision_the_same_checks_see_what_rounding_does_not_explain(name, cases):
    held = evidence(cases[name])
    for index, point in enumerate(held.found.curve):
        held.found.curve[index] = replace(point, loss=point.loss * 1.02)
    held.found.tensors["mb0.step1.logits"] *= 1.2
    held.found.tensors["mb0.loss"] *= 1.02
    rows = run_checks(held, only=("forward", "loss", "curve"))
    assert {row.tensor for row in rows if not row.passed and row.compared} == {"mb0.step1.logits", "mb0.loss", "loss"}
