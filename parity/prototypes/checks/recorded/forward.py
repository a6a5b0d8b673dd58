"""Batches, targets, hidden states, logits and losses of the first optimizer step."""

from __future__ import annotations

from parity.compare import compare_groups, compare_named
from parity.prototypes.checks.evidence import Evidence
from parity.verdict import Row


def check_batches(evidence: Evidence) -> list[Row]:
    """What the model is fed is equal to the bit, padding included."""
    rows: list[Row] = []
    for index in evidence.micro_batches():
        prefix = f"mb{index}.batch."
        expected, found = evidence.expected.group(prefix), evidence.found.group(prefix)
        rows += compare_groups(evidence.subject("batches"), "batch", expected, found, evidence.tolerance("batch"))
    return rows


def check_targets(evidence: Evidence) -> list[Row]:
    """The verifier's distribution at every real position."""
    return _named(evidence, "targets", "target_p", ["target_p"])


def check_forward(evidence: Evidence) -> list[Row]:
    """Hidden states and logits of every TTT step, at every real position."""
    steps = range(evidence.case.ttt_steps)
    return [
        *_named(evidence, "forward", "hidden_in", ["step0.hidden_in"]),
        *_named(evidence, "forward", "hidden", [f"step{step}.hidden" for step in steps]),
        *_named(evidence, "forward", "logits", [f"step{step}.logits" for step in steps]),
    ]


def check_loss(evidence: Evidence) -> list[Row]:
    """The loss of every TTT step and the one reported."""
    names = [f"step{step}.loss" for step in range(evidence.case.ttt_steps)]
    return _named(evidence, "loss", "loss", [*names, "loss"])


def _named(evidence: Evidence, check: str, quantity: str, names: list[str]) -> list[Row]:
    subject, tolerance, rows = evidence.subject(check), evidence.tolerance(quantity), []
    for index in evidence.micro_batches():
        for name in (f"mb{index}.{name}" for name in names):
            expected, found = evidence.expected.tensors.get(name), evidence.found.tensors.get(name)
            where = None if quantity == "loss" else evidence.real(index)
            rows.append(compare_named(subject, quantity, name, expected, found, tolerance, where))
    return rows
