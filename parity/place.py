"""Where a run first goes wrong, of what its rows, its calls and the operators below them say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from parity.allowed import SAYS_NOTHING, pool_of
from parity.calls import WHOLE, calls_of
from parity.environment import deterministic
from parity.errors import place_of
from parity.locate import LOSS, Comparator, first_backward, first_forward
from parity.modules import place_of_row
from parity.observe import drawing
from parity.operators import Live, with_operator
from parity.side import Rerunnable, fresh_module
from parity.trace_pair import TracePair
from parity.verdict import Finding, Row, Status

Hint = Callable[[Row, TracePair], str]
"""A failed row and its evidence to what it looks like; empty: nothing known."""


def hinted(rows: list[Row], evidence: TracePair, first: Finding | None, hint: Hint | None) -> list[Row]:
    """The first failed row of every check says what it looks like, the first of all where it goes wrong."""
    told, seen = [], set[str]()
    for row in rows:
        if row.status is Status.FAILED and row.check not in seen:
            known = _known(hint, row, evidence)
            row = replace(row, hint=known or (str(first) if first and not seen else ""))
            seen.add(row.check)
        told.append(row)
    return told


def _known(hint: Hint | None, row: Row, evidence: TracePair) -> str:
    """What the pair says of a failed row; a hint that raises takes no report with it."""
    try:
        return hint(row, evidence) if hint else ""
    except Exception as error:  # whatever a side that is run once more does
        return f"no hint: {type(error).__name__} at {place_of(error)}"


def first_place(rows: Sequence[Row], evidence: TracePair) -> Finding | None:
    """Where the first failed row's check goes wrong; None when everything passed."""
    row = next((row for row in rows if row.status is Status.FAILED), None)
    sides, finding = (calls_of(evidence.expected), calls_of(evidence.found)), None
    if row is None:
        return None
    if row.check == "forward" and all(sides) and row.quantity != "calls":
        finding = first_forward(*sides, _apart(evidence, "out"))
    elif row.check == "gradients" and all(sides):
        grads = evidence.expected.group("mb0.grad."), evidence.found.group("mb0.grad.")
        finding = first_backward(*sides, grads, _apart(evidence, "grad"))
    return _with_operator(finding, evidence) if finding else _of_row(row)


def _apart(evidence: TracePair, quantity: str) -> Comparator:
    """Do two tensors differ by more than rounding? Each by its own bound; what has none by the largest there is."""
    traced = {name: value for name, value in evidence.expected.tensors.items() if pool_of(name)}
    own = {id(value): evidence.allowed(quantity, name, value.dtype).bound for name, value in traced.items()}
    said = [bound for bound in own.values() if bound < SAYS_NOTHING]
    table = evidence.tolerance(quantity)
    return Comparator(max(said, default=table.bound) if evidence.spread else table.bound, own)


def _with_operator(finding: Finding, evidence: TracePair) -> Finding:
    """The first operator below the module too, where both sides can be run again."""
    original, port = evidence.original, evidence.alive
    if original is None or port is None or original.side.ranks > 1 or port.side.ranks > 1:
        return finding
    apart = _apart(evidence, "grad" if finding.direction == "backward" else "out")
    try:
        return with_operator(finding, _to_follow(original), _to_follow(port), apart, evidence.names)
    except Exception as error:  # whatever a module does that cannot be followed
        return replace(finding, operator=f"not found, {type(error).__name__} at {place_of(error)}")


def _to_follow(alive: Rerunnable) -> Live:
    """A fresh module and its loss, with the same seed and draws as the run's."""
    with deterministic(alive.case.seed):
        module = fresh_module(alive.side, alive.case.weights)

    def run() -> Any:
        with deterministic(alive.case.seed), drawing(alive.case.draws, alive.case.replayed):
            return alive.side.loss(module, alive.case.batches[0])

    return Live(module, run)


def _of_row(row: Row) -> Finding:
    """The place that a row names by itself: a module that is called on one side, a parameter's, the loss, or all."""
    if row.check == "loss":
        return Finding("loss", "forward", LOSS, 0, row.detail)
    group, _, name = row.tensor.partition(".")
    module = row.tensor if row.quantity == "calls" else ""
    if row.check == "modules":
        module = place_of_row(row.tensor)
    if row.check in ("weights", "optimizer_step") or group == "requires_grad":
        module = name.rpartition(".")[0]
    return Finding(row.check, row.check, module or WHOLE, 0, ": ".join(filter(None, (row.tensor, row.detail))))
