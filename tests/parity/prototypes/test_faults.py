"""The prototypes' pairs: every fault that is planted in a port is seen, and every check is there for one."""

from dataclasses import replace

import pytest
import torch
from speculators.convert.eagle.eagle3_converter import Eagle3Converter

from parity.checks import run_checks
from parity.pair import find_pair
from parity.place import hinted
from parity.plants import Ground, patched, taking
from parity.power import Battery
from parity.prototypes.faults import swapped
from parity.prototypes.pair import few_steps
from parity.run import CaseRun
from parity.trace import Trace
from parity.verdict import Status
from ports.training.settings import TrainingSettings

PAIRS = {name: find_pair(name) for name in ("eagle3", "hass")}
NAMES = {check.name for pair in PAIRS.values() for check in pair.every_check}

ELSEWHERE = frozenset({"draws", "initialisation", "modules", "samplers", "throughput"})
"""Named by faults in other tests: of what is drawn, of speed, of modules in half precision."""

OF_ALL = {"environment", "batches", "clip", "schedule", "optimizer_step", "hits", "round_trip", "resume"}
IN_FP32 = OF_ALL | {"targets", "forward", "loss", "cross_step_grad", "gradients", "curve"}
SEEING = {
    "eagle3_fp32_k3": IN_FP32 | {"configuration", "gradient_flow", "chain"},
    "hass_fp32_k3": IN_FP32 - {"targets"} | {"weights"},
    "hass_bf16_k3": OF_ALL | {"weights", "gradients"},
    "eagle3_bf16ds_k3": {"forward", "gradients", "hits", "optimizer_step", "cross_step_grad", "resume", "schedule"},
}
"""By case, checks that are the first to see a fault there."""


def entered(plant):
    return plant(Ground(), 1.0)


def judged(evidence, only=None):
    return run_checks(evidence, PAIRS[evidence.case.algorithm].every_check, only)


def failed(rows):
    return {row.check for row in rows if row.status is Status.FAILED}


BY_NIGHT = {name: [pytest.mark.nightly] for name in SEEING if "fp32" not in name}
"""Half precision: what it is the first to see there, float32 sees too."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=BY_NIGHT.get(name, ())) for name in SEEING])
def test_every_planted_fault_is_seen(name, cases):
    """Or is below rounding in bfloat16, or has a reason; in float32 none is below."""
    short = few_steps(PAIRS[cases[name].algorithm])
    with CaseRun(short, cases[name]) as held:
        found = Battery(held).run()
    assert not [one for one in found if one.fails or ("fp32" in name and one.sight.value == "below rounding")]
    assert {one.check for one in found} >= SEEING[name]


WHOLE = {
    "a converter leaves a weight out": (
        "eagle3_fp32_k3",
        taking(
            Eagle3Converter,
            "_save_converted_checkpoint",
            lambda self, config, held, *rest: (self, config, {**held, "fc.weight": torch.zeros(1)}, *rest),
        ),
        {"converted"},
    ),
    "accumulation forgotten in the schedule": (
        "eagle3_fp32_k3_ga2",
        patched(TrainingSettings, "samples_per_step", lambda real: lambda self, processes=1: self.bs),
        {"configuration", "schedule"},
    ),
}


@pytest.mark.parametrize(("name", "plant", "checks"), WHOLE.values(), ids=WHOLE)
def test_a_fault_of_a_whole_run_is_named(name, plant, checks, whole_run):
    with entered(plant):
        assert failed(judged(whole_run(name), (NAMES - {"resume", "chain"}))) == checks


def test_every_check_has_a_fault():
    named = {name for _, _, checks in WHOLE.values() for name in checks}
    assert named.union(*SEEING.values()) == NAMES - ELSEWHERE


@pytest.mark.parametrize("name", ["eagle3_fp32_k3", "eagle3_bf16ds_k3", "hass_fp32_k3", "hass_bf16_k3"])
def test_without_a_fault_nothing_fails(name, sound):
    rows = judged(sound(name))
    assert all(row.passed or not row.compared for row in rows)


@pytest.mark.parametrize("name", sorted(NAMES - {"chain", "resume", "converted", "round_trip"} - ELSEWHERE))
def test_zero_comparisons_fail(name, sound):
    """Both sides empty: nothing was compared, which no check may let pass."""
    evidence = sound("eagle3_fp32_k3")
    sides = [Trace(run, evidence.case.name, evidence.case.dtype) for run in ("recorded", "port", "reference")]
    empty = replace(evidence, expected=sides[0], found=sides[1], left=None, reference=lambda: sides[2])
    assert not [row for row in judged(empty, {name}) if row.passed]


def test_a_fault_is_located(whole_run):
    with entered(swapped("ttt_prototype_auto", "ttt_chain_auto")):
        evidence = whole_run("eagle3_fp32_k3")
        rows = hinted(judged(evidence, {"batches", "forward"}), evidence, None, PAIRS["eagle3"].hint)
    hint = next(row.hint for row in rows if row.status is Status.FAILED)
    assert "forward first goes wrong in layers.0.self_attn, call 2" in hint
