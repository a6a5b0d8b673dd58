"""Final losses over seeds: is the port's bfloat16 training equivalent to the prototype's, given how that one varies?"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from scipy.stats import t as student

from parity.compare import Subject
from parity.evidence import Evidence
from parity.prototypes.case import Case
from parity.prototypes.port import trace_port
from parity.prototypes.reference.loop import trace_reference
from parity.prototypes.synthetic import reseeded
from parity.trace import Trace
from parity.verdict import Row

SEEDS = (1, 2, 3, 4, 5, 6)
CONFIDENCE = 0.95

Losses = Sequence[float]
"""Mean loss of the last pass, under each seed."""


def check_equivalence(evidence: Evidence) -> list[Row]:
    """Of the port with the reference in the case's precision."""
    return [judge_spread(evidence.case, *final_losses(evidence.case))]


def final_losses(case: Case, seeds: Sequence[int] = SEEDS) -> tuple[Losses, Losses]:
    """The prototype's as launched, by the reference, and the port's; both on one order and noise, from one start."""
    pairs = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            seeded = reseeded(case, Path(folder), seed)
            pairs.append((_final(trace_reference(seeded, torch.bfloat16)), _final(trace_port(seeded))))
    prototype, port = zip(*pairs)
    return prototype, port


def _final(trace: Trace) -> float:
    last = trace.curve[-1].epoch
    return statistics.fmean(point.loss for point in trace.curve if point.epoch == last)


def judge_spread(case: Case, prototype: Losses, port: Losses) -> Row:
    """Two one-sided tests (Schuirmann 1987): the mean difference lies within the prototype's own spread at 95 %.

    That spread is the standard deviation over seeds. One that never varies, or diverged, proves nothing.
    """
    finite = all(map(math.isfinite, (*prototype, *port)))
    bound, reach = (statistics.stdev(prototype), _reach(prototype, port)) if finite else (0.0, math.inf)
    measured = reach / bound if bound else math.inf
    detail = (
        f"mean of the last pass over {len(port)} seeds: prototype {statistics.fmean(prototype):.4f} "
        f"+- {bound:.4f}, port {statistics.fmean(port):.4f}; paired difference reaches {reach:.4f}"
    )
    subject = Subject("equivalence", case.name, "port")
    return subject.row("final_loss", "last pass", measured, 1.0, measured <= 1.0, detail)


def _reach(prototype: Losses, port: Losses) -> float:
    """The far end of the 90 % interval of the mean paired difference, in absolute value."""
    gaps = [one - other for one, other in zip(port, prototype)]
    error = statistics.stdev(gaps) / len(gaps) ** 0.5
    return abs(statistics.fmean(gaps)) + float(student.ppf(CONFIDENCE, len(gaps) - 1)) * error
