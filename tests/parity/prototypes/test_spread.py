"""What one rounding does to a prototype: stored as it is measured; and the reference that says so is held itself."""

from dataclasses import replace

import pytest

from parity.allowed import DRAWN
from parity.checks import run_checks
from parity.draws import MOVED, TURNED
from parity.errors import InputError
from parity.pair import find_pair
from parity.prototypes.pair import REFERENCE
from parity.prototypes.reference.layer import Layer
from parity.prototypes.spread import FILE, measure, spread_for
from parity.run import CaseRun
from parity.verdict import Against


def test_a_stored_spread_is_what_is_measured(cases):
    """Of few draws here and many there, on another machine within a factor of two."""
    case = cases["eagle3_fp32_k1"]
    found, stored = measure(case, whole=False), spread_for(case)
    assert found.keys() == stored.keys()
    assert tuple(stored[DRAWN][0]) == (MOVED, TURNED, 0.0)
    tensors = [name for name in stored if name.startswith(("grad.", "step", "target")) and not name.endswith("norm")]
    assert all(found[name][0].rms == pytest.approx(stored[name][0][0], rel=0.5) for name in tensors)


def test_every_case_has_one(cases):
    assert all((case.directory / FILE).exists() for case in cases.values())


def test_a_spread_that_is_none_is_named(copy):
    (copy.directory / FILE).write_text('{"loss": [-1]}')
    with pytest.raises(InputError, match=r"spread.json: loss.0.*: found -1, expected "):
        spread_for(copy)


@pytest.mark.parametrize(
    ("name", "factor", "failing"),
    [("eagle3_bf16ds_k3", 1.0, set()), ("hass_bf16_k3", 1.0, set()), ("hass_bf16_k3", -0.3, {"forward", "loss"})],
)
def test_the_reference_is_held_against_half_precision_too(name, factor, failing, cases, monkeypatch):
    """Nothing that a port is judged by stands outside of the recordings."""
    real = Layer.logits
    monkeypatch.setattr(Layer, "logits", lambda self, out: factor * real(self, out))
    pair = find_pair(cases[name].algorithm)
    with CaseRun(replace(pair, port=REFERENCE, sides=()), cases[name]) as run:
        rows = run_checks(run.evidence(REFERENCE), pair.every_check, {"forward", "loss"})
    assert {row.check for row in rows if row.compared and not row.passed} == failing


def test_a_case_without_recorded_gradients_is_held_to_the_reference_s(sound):
    evidence = sound("eagle3_bf16ds_k3")

    def held(evidence):
        rows = run_checks(evidence, find_pair("eagle3").every_check, {"gradients"})
        return [row for row in rows if ".grad." in row.tensor]

    assert len(held(evidence)) == 13
    assert all(row.passed and row.against is Against.REFERENCE for row in held(evidence))
    wrong = {name: -0.3 * value if ".grad." in name else value for name, value in evidence.found.tensors.items()}
    assert not any(row.passed for row in held(replace(evidence, found=replace(evidence.found, tensors=wrong))))
