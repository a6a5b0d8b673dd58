"""Corners of the formulas that no recorded run reaches: long schedules, first rows in a loss, passes without rows.

Everything is computed from drawn or counted inputs, the same on every machine; the other side are the definitions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fixtures.draws import uniform
from parity.checks.beyond.places import check_places
from parity.checks.evidence import Evidence
from parity.compare import Subject, compare, compare_value
from parity.result import Row
from ports.training import metrics, settings
from ports.training.alignment import Alignment
from ports.training.data.batches import RecordDataset
from ports.training.loss import objective, scoring
from ports.training.loss.fused_loss import Extras
from ports.training.loss.objective import Hits
from ports.training.loss.scoring import LossImplementation, Verifier
from ports.training.loss.steps import Step

RUNS = ((9950, 0, 1), (1000, 9, 8), (7, 2, 4), (3, 0, 4))
"""Samples, ``--epoch`` and samples of an optimizer step: warm-up of 99 steps, of 12, of none, and no step at all."""

SHAPE, WIDTH, VOCABULARY, STEPS, TOP = (2, 2), 6, 9, 3, 4
"""Samples and positions, fewer than the places hits are counted in; a head's sizes; TTT steps; likeliest tokens."""


def check_corners(evidence: Evidence) -> list[Row]:
    """The schedule's lengths, rows in a loss by TTT step, both losses on them, empty passes; where things lie."""
    subject = evidence.subject("corners")
    rows = [*_schedules(subject), *_rows_by_step(subject), *_defaults(subject), *_empty_passes(subject)]
    return [*rows, *_scores(evidence, subject), *check_places(evidence, subject)]


def _schedules(subject: Subject) -> Iterator[Row]:
    """Whole steps of the run, and a hundredth of them, both rounded down."""
    for samples, epoch, a_step in RUNS:
        total = samples * (epoch + 1) // a_step
        expected, found = [total, math.floor(total / 100)], list(settings.linear_schedule_steps(samples, epoch, a_step))
        yield compare_value(subject, "schedule", f"{samples} samples, {epoch + 1} passes by {a_step}", expected, found)


def _rows_by_step(subject: Subject) -> Iterator[Row]:
    """All rows are in the loss, the first ones too: in chain a document's row p takes part in the steps up to p."""
    packed = [0, 1, 2, 3, 0, 1]
    for positions, name in ((None, "a row"), (torch.tensor([packed]), "packed")):
        counted = list(range(len(packed))) if positions is None else packed
        for step in range(4):
            mask = torch.ones(1, len(packed), dtype=torch.int64)
            for alignment in Alignment:
                expected = [int(alignment is Alignment.PROTOTYPE or place >= step) for place in counted]
                found = objective.step_rows(mask, step, alignment, positions)
                yield compare_value(
                    subject, "rows", f"{name}, {alignment.value}, step {step}", [expected], found.tolist()
                )


def _defaults(subject: Subject) -> Iterator[Row]:
    """What a caller leaves out is the prototypes' choice; a loss counts nothing that it was not asked for."""
    dataset, extras = RecordDataset([], {}, 1), Extras()
    found = [dataset.max_len, dataset.alignment, dataset.noise, dataset.skip_bad, dataset.like]
    yield compare_value(subject, "defaults", "samples", [8192, Alignment.PROTOTYPE, True, False, None], found)
    yield compare_value(subject, "defaults", "loss", [False, 0], [extras.hits, extras.topk])


def _empty_passes(subject: Subject) -> Iterator[Row]:
    """Nothing is logged where no row is in the loss, and a pass over nothing has no mean and no hits."""
    none, one = (Hits(torch.tensor(count), torch.tensor([count] * 3), torch.tensor(count)) for count in (0, 1))
    yield compare_value(subject, "metrics", "no row", {}, metrics.log_entry(0.5, 1.0, none))
    top = {f"train/top_{place}_acc": 1.0 for place in (1, 2, 3)}
    expected = {"train/lr": 0.5, "train/ploss": 2.0, "train/loss": 1.0, "train/acc": 1.0, **top}
    yield compare_value(subject, "metrics", "one row", expected, metrics.log_entry(0.5, 1.0, one, {"train/ploss": 2.0}))
    lines = ["Epoch [1/0], Loss: nan", "Train Accuracy: 0.00%"]
    yield compare_value(subject, "prints", "a pass over nothing", lines, metrics.PassTotals().lines(0, 0))
    totals = metrics.PassTotals(skipped=2)
    for _ in range(2):
        totals.add(1.5, one)
    lines = ["Epoch [3/5], Loss: 1.5000", "Train Accuracy: 100.00%", "Skipped 2 bad records"]
    yield compare_value(subject, "prints", "two batches", lines, totals.lines(2, 5))


def _scores(evidence: Evidence, subject: Subject) -> Iterator[Row]:
    """Both ways of computing the loss, where every row is in it; and that each is the way that was asked for."""
    states, head = _drawn("states", STEPS, *SHAPE, WIDTH), _drawn("head", VOCABULARY, WIDTH)
    wanted, verifier = _drawn("wanted", *SHAPE, WIDTH), _drawn("verifier", VOCABULARY, WIDTH)
    for alignment in Alignment:
        masks = [objective.step_rows(torch.ones(SHAPE, dtype=torch.int64), step, alignment) for step in range(STEPS)]
        expected = _by_definition(states, masks, head, wanted, verifier)
        for implementation in LossImplementation:
            steps = [Step(state, state, lambda hidden: hidden @ head.T) for state in states]
            target = Verifier(wanted, verifier)
            scores = scoring.score(steps, masks, target, nn.Identity(), head, implementation, TOP)
            numbers = [*scores.kl, scores.hits.correct, *scores.hits.top, scores.hits.rows, *scores.entropies]
            found, name = torch.stack([each.double() for each in numbers]), f"{alignment.value}, {implementation.value}"
            yield compare(subject, "sums", name, expected, found, evidence.tolerance("sums"))
            without = scoring.score(steps, masks, target, nn.Identity(), head, implementation)
            yield compare_value(subject, "sums", f"{name}: no likeliest tokens", 0.0, float(without.entropies[1]))
            every = ["logits" in vars(step) for step in steps]
            eager = [implementation is LossImplementation.EAGER] * STEPS
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


def _drawn(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(uniform(0, name, shape)).float() * 3**0.5
