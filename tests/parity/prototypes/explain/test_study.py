"""A study passes when named causes are all of a difference, and fails, by name, when they are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from parity.compare import Subject
from parity.prototypes.explain.study import Cause, Study, kind_of, quantity_of, study

CAUSES = [Cause("shift", "1 is added"), Cause("scale", "everything is doubled")]
SUBJECT = Subject("others", "one", "toy against prototype")


def side(causes: frozenset[str]) -> dict[str, Tensor]:
    value = torch.tensor([1.0, 2.0]) + (1.0 if "shift" in causes else 0.0)
    return {"step0.logits": value * (2.0 if "scale" in causes else 1.0), "loss": value.sum().reshape(1)}


@pytest.fixture
def made() -> Callable[..., Study]:
    def make(theirs: dict[str, Tensor] | None = None, causes: list[Cause] = CAUSES, **more: object) -> Study:
        return study(SUBJECT, theirs or side(frozenset({"shift", "scale"})), side, causes, **more)  # type: ignore[arg-type]

    return make


def failed(found: Study) -> list[tuple[str, str]]:
    return [(row.quantity, row.tensor) for row in found.rows if not row.passed]


def test_causes_that_are_all_of_the_difference(made) -> None:
    found = made()
    assert found.passed
    logits, loss = found.findings
    assert (logits.quantity, loss.quantity) == ("logits, step 0", "loss, total")
    assert [name for name, _ in logits.because] == ["shift", "scale"]
    assert [name for name, _ in loss.because] == ["shift"]
    assert logits.difference == pytest.approx(4 / 6)
    assert logits.left.measured == 0
    assert found.effect("shift", "logits") == pytest.approx(2 / 6)
    assert found.effect("scale", "loss") is None


def test_a_tampered_tensor_fails_its_quantity(made) -> None:
    theirs = side(frozenset({"shift", "scale"}))
    theirs["step0.logits"][1] += 1e-3
    assert failed(made(theirs)) == [("logits", "step0.logits")]


def test_a_cause_that_is_missing_fails_what_it_would_explain(made) -> None:
    assert failed(made(causes=CAUSES[:1])) == [("logits", "step0.logits")]


def test_a_cause_that_explains_nothing_fails(made) -> None:
    found = made(causes=[*CAUSES, Cause("moon", "the moon is full")])
    assert failed(found) == [("cause", "moon")]
    assert "explains nothing" in found.rows[-1].detail


@pytest.mark.parametrize("value", [None, torch.tensor([float("nan")])])
def test_a_tensor_that_is_missing_or_nan_fails(value: Tensor | None, made) -> None:
    theirs = {**side(frozenset({"shift", "scale"})), "loss": value}
    assert ("loss", "loss") in failed(made({name: found for name, found in theirs.items() if found is not None}))


def test_the_side_must_be_what_was_recorded(made) -> None:
    assert made(start=side(frozenset())).passed
    wrong = {**side(frozenset()), "loss": torch.tensor([3.1])}
    (row,) = [row for row in made(start=wrong).rows if not row.passed]
    assert (row.check, row.tensor) == ("start", "loss")


def test_a_study_of_nothing_fails() -> None:
    assert not Study("toy", "prototype", "one", (), (), ()).passed


@pytest.mark.parametrize(
    ("name", "quantity"),
    [
        ("step2.hidden", "hidden, step 2"),
        ("loss", "loss, total"),
        ("features", "features"),
        ("grad.fc.bias", "gradients, fc.bias"),
        ("grad.fc.weight", "gradients, fc"),
        ("grad.layers.0.self_attn.q_proj.weight", "gradients, layers.0.self_attn"),
        ("grad.layers.0.hidden_norm.weight", "gradients, norms"),
    ],
)
def test_quantities(name: str, quantity: str) -> None:
    assert quantity_of(name) == quantity
    assert kind_of(quantity) in ("hidden", "loss", "features", "gradients")
