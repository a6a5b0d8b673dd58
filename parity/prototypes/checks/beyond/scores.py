"""Both ways of computing the loss where every row is in it, the first ones too, which no recorded mask has.

Shapes: k TTT steps, h width, D tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parity.compare import Subject, compare, compare_value
from parity.prototypes.checks.beyond.attention import drawn
from parity.prototypes.checks.evidence import Evidence
from parity.verdict import Row
from ports.training.alignment import Alignment
from ports.training.loss import objective, scoring
from ports.training.loss.scoring import LossImplementation, Verifier
from ports.training.loss.steps import Step

SHAPE, WIDTH, VOCABULARY, TOP = (2, 2), 6, 9, 4
"""Samples and positions, fewer than the places hits are counted in; a head's sizes; likeliest tokens."""


def check_scores(evidence: Evidence, subject: Subject) -> Iterator[Row]:
    """Rows of the corners check: the sums by definition, and that each way is the one that was asked for."""
    for steps in (3, 2):
        yield from _scores(evidence, subject, steps)


def _scores(evidence: Evidence, subject: Subject, count: int) -> Iterator[Row]:
    states, head = drawn("states", count, *SHAPE, WIDTH), drawn("head", VOCABULARY, WIDTH)
    wanted, verifier = drawn("wanted", *SHAPE, WIDTH), drawn("verifier", VOCABULARY, WIDTH)
    for alignment in Alignment:
        masks = [objective.step_rows(torch.ones(SHAPE, dtype=torch.int64), step, alignment) for step in range(count)]
        expected = _by_definition(states, masks, head, wanted, verifier)
        for implementation in LossImplementation:
            steps = [Step(state, state, lambda hidden: hidden @ head.T) for state in states]
            target = Verifier(wanted, verifier)
            scores = scoring.score(steps, masks, target, nn.Identity(), head, implementation, TOP)
            numbers = [*scores.kl, scores.hits.correct, *scores.hits.top, scores.hits.rows, *scores.entropies]
            found, name = (
                torch.stack([each.double() for each in numbers]),
                f"{count} steps, {alignment.value}, {implementation.value}",
            )
            yield compare(subject, "sums", name, expected, found, evidence.tolerance("sums"))
            right = (wanted.double() @ verifier.double().T).softmax(-1)
            yield compare(subject, "sums", f"{name}: target", right, target.probabilities, evidence.tolerance("sums"))
            yield compare_value(
                subject, "targets", name, True, torch.equal(target.logits.softmax(-1), target.probabilities)
            )
            without = scoring.score(steps, masks, target, nn.Identity(), head, implementation)
            yield compare_value(subject, "sums", f"{name}: no likeliest tokens", [0.0], without.entropies[1:].tolist())
            every = ["logits" in vars(step) for step in steps]
            eager = [implementation is LossImplementation.EAGER] * count
            yield compare_value(subject, "all logits made", name, eager, every)


def _by_definition(states: Tensor, masks: Sequence[Tensor], head: Tensor, wanted: Tensor, verifier: Tensor) -> Tensor:
    """KL [k], then of the last step its hits, hits in the first three, rows and both cross-entropies, in float64."""
    log_t = (wanted.double() @ verifier.double().T).log_softmax(-1)
    log_q = [(state.double() @ head.double().T).log_softmax(-1) for state in states]
    numbers: list[Any] = [(log_t.exp() * (log_t - each)).sum(-1)[mask > 0].sum() for each, mask in zip(log_q, masks)]
    last, rows = log_q[-1][masks[-1] > 0], log_t[masks[-1] > 0]
    place = (last > last.gather(-1, rows.argmax(-1)[:, None])).sum(-1)
    terms = -rows.exp() * last
    likeliest = rows.argsort(-1, descending=True)[:, :TOP]
    numbers += [(place == 0).sum(), *((place < count).sum() for count in (1, 2, 3)), torch.tensor(len(last))]
    return torch.stack([each.double() for each in (*numbers, terms.sum(), terms.gather(-1, likeliest).sum())])
