"""How close is close enough: one table, keyed by run, precision and quantity.

Every row holds the bound, the noise floor that was measured between independent float32 implementations of the same
formulas on one machine, and why the bound is what it is. No check carries a number of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(str, Enum):
    """What is measured. Every kind fails on NaN, on another shape and on nothing compared."""

    EQUAL = "entries that differ"
    ABSOLUTE = "largest absolute difference"
    OF_MAX = "largest difference over the largest entry"
    OF_SUM = "sum of differences over the sum of entries"
    RELATIVE = "largest relative difference"
    RATIO = "ratio"
    ROUNDING = "units of rounding"


@dataclass(frozen=True)
class Tolerance:
    """A bound on one quantity."""

    kind: Kind
    bound: float
    floor: float | None
    reason: str


EXACT = Tolerance(Kind.EQUAL, 0.0, 0.0, "data movement and integer counts leave no room for rounding")

PORT_FP32 = {
    "batch": EXACT,
    "configuration": EXACT,
    "weights": EXACT,
    "vocabulary": EXACT,
    "target_p": Tolerance(Kind.ABSOLUTE, 1e-6, 0.0, "one matmul and a softmax, bit-equal on the recording's machine"),
    "hidden_in": Tolerance(Kind.ABSOLUTE, 1e-5, 0.0, "one matmul"),
    "hidden": Tolerance(Kind.ABSOLUTE, 1e-5, 1.4e-6, "another order of sums in attention"),
    "logits": Tolerance(Kind.ABSOLUTE, 1e-5, 2.9e-6, "hidden through norm and head, logits of the order of 2"),
    "loss": Tolerance(Kind.RELATIVE, 5e-6, 2e-7, "a mean over rows"),
    "grad": Tolerance(Kind.OF_MAX, 2e-6, 4.6e-7, "history projected once: gradients add up in another order"),
    "grad_norm": Tolerance(Kind.RELATIVE, 2e-5, 3.3e-6, "the norm of what differs by rounding; 200 steps of drift"),
    "after": Tolerance(Kind.ABSOLUTE, 3e-5, 6.4e-6, "Adam's first step is lr * sign(g): rounding in g near 0 shows"),
    "final": Tolerance(Kind.ABSOLUTE, 5e-5, 2.9e-6, "the same, over the whole run"),
    "lr": EXACT,
    "clip": Tolerance(Kind.ROUNDING, 64.0, 6.4, "a norm over all entries, summed up in float32"),
    "update": Tolerance(Kind.ROUNDING, 4.0, 2.01, "each of four operations rounds once, by half a unit"),
    "state": Tolerance(Kind.ROUNDING, 3.0, 1.1, "two products and a sum, each rounds by half a unit"),
    "rows": EXACT,
    "hits": Tolerance(Kind.OF_SUM, 0.02, 2.3e-3, "1 of 437 hits fell the other way, over 2e-7, under another torch"),
    "prints": Tolerance(Kind.ABSOLUTE, 1.5e-4, 0.0, "four decimals: a loss near a rounding edge falls either way"),
    "path": Tolerance(Kind.RELATIVE, 1e-4, 3e-7, "norms of gradients through earlier steps; a cut path is off by 1"),
    "round_trip": EXACT,
    "resume": EXACT,
    "converted": EXACT,
    "chain_logits": Tolerance(Kind.ABSOLUTE, 1e-5, 3.4e-6, "Speculators' own kernels sum in another order"),
    "online": Tolerance(Kind.ABSOLUTE, 2e-5, 2.7e-6, "a padded batch through eight layers beside each dialogue alone"),
    "attention": Tolerance(Kind.OF_MAX, 2e-6, 8.6e-7, "float32 beside float64, gradients too"),
    "sums": Tolerance(Kind.RELATIVE, 2e-6, 1.2e-7, "float32 beside float64, over a thousand rows; counts are exact"),
    "chain_loss": Tolerance(Kind.RELATIVE, 1e-6, 2e-7, "the same mask and slice rules over the same logits"),
}
"""A port against the prototype, everything in float32."""

FLOORS_FP32 = {
    **PORT_FP32,
    "hidden": Tolerance(Kind.ABSOLUTE, 3.9e-6, 1.4e-6, "the floor of a re-implementation from the formulas"),
    "logits": Tolerance(Kind.ABSOLUTE, 3.9e-6, 3.8e-6, "the floor of a re-implementation from the formulas"),
    "loss": Tolerance(Kind.RELATIVE, 1.1e-6, 4.2e-7, "the floor over trajectories of 39 to 200 steps"),
    "grad": Tolerance(Kind.OF_MAX, 4.2e-7, 4e-7, "the floor of a re-implementation from the formulas"),
    "after": Tolerance(Kind.ABSOLUTE, 1.2e-5, 1.1e-5, "the floor after one AdamW step"),
    "final": Tolerance(Kind.ABSOLUTE, 1.2e-5, 2e-6, "the floor over whole trajectories"),
}
"""The reference on the shipped recordings: as close as an independent implementation was ever seen to come.

Other recordings have other sizes and other floors, so there the reference is held to the port's table.
"""

BF16 = {
    **PORT_FP32,
    "error_ratio": Tolerance(Kind.RATIO, 1.5, 1.0, "the port's error against float64 over the prototype's own"),
    "loss_error": Tolerance(
        Kind.RELATIVE, 2**-9, 1.3e-3, "a prototype's losses count as no better than a bfloat16 number, whatever cancels"
    ),
    "distance": Tolerance(
        Kind.RATIO, 1.5, 1.28, "losses of ten steps: the port's distance from float64 by the other's"
    ),
    "drift": Tolerance(Kind.RATIO, 1.0, 0.51, "mean difference of the last quarter by the prototype's own distance"),
    "path": Tolerance(Kind.RELATIVE, 0.1, 2e-2, "bfloat16 has 8 bits; a cut path is off by 1"),
    "round_trip": EXACT,
}
"""bfloat16: numbers are judged by their error against float64, see the precision check."""

EXPLAINED = {
    "features": Tolerance(Kind.OF_MAX, 5e-6, 5.3e-7, "up to six layers of another implementation of the verifier"),
    "hidden": Tolerance(Kind.OF_MAX, 5e-6, 2.1e-7, "another order of sums in attention"),
    "logits": Tolerance(Kind.OF_MAX, 5e-6, 3.5e-7, "hidden through norm and head"),
    "loss": Tolerance(Kind.RELATIVE, 5e-6, 2e-7, "a mean over rows"),
    "gradients": Tolerance(Kind.OF_MAX, 5e-6, 8.5e-7, "a backward through all steps"),
}
"""Another original against the formulas with every cause of its difference put in, in float32."""

SHORTFALL = {
    "throughput": Tolerance(Kind.RATIO, 0.90, None, "the port may be at most 10 % slower than the prototype"),
}
"""Lower bounds."""


FLOOR_RUN = "floor"
"""Name of the run that is held to the floors instead of the bounds."""


def tolerance(run: str, dtype: str, quantity: str) -> Tolerance:
    """The row for a quantity of a run."""
    if dtype != "fp32":
        return BF16[quantity]
    return (FLOORS_FP32 if run == FLOOR_RUN else PORT_FP32)[quantity]
