"""Corners of the formulas that no recorded run reaches: long schedules, first rows in a loss, passes without rows.

Everything is computed from drawn or counted inputs, the same on every machine; the other side are the definitions.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from parity.compare import Subject, compare_named, compare_value
from parity.environment import deterministic, quietly
from parity.prototypes.checks.beyond.places import check_places
from parity.prototypes.checks.beyond.scores import check_scores
from parity.prototypes.checks.beyond.shortcuts import check_shortcuts
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.port import settings_for, start_port
from parity.verdict import Row
from ports.training import metrics, settings
from ports.training.alignment import Alignment
from ports.training.attention.choice import AttentionImplementation, attention_name
from ports.training.data.batches import CollateVisits, RecordDataset, collate
from ports.training.loss import objective
from ports.training.loss.fused_loss import Extras
from ports.training.loss.objective import Hits

RUNS = ((9950, 0, 1), (1000, 9, 8), (7, 2, 4), (3, 0, 4))
"""Samples, ``--epoch`` and samples of an optimizer step: warm-up of 99 steps, of 12, of none, and no step at all."""

STEPS = 3
"""TTT steps."""


def check_corners(evidence: Evidence) -> list[Row]:
    """The schedule's lengths, rows in a loss by TTT step, both losses on them, empty passes; shortcuts, places."""
    subject = evidence.subject("corners")
    rows = [*_schedules(subject), *_rows_by_step(subject), *_defaults(subject), *_empty_passes(subject)]
    rows.append(_schedule_of_settings(evidence, subject))
    rows += [*_rows_of_objective(evidence, subject), *_logged(evidence, subject), *_attention_names(subject)]
    return [*rows, *check_scores(evidence, subject), *check_shortcuts(subject), *check_places(evidence, subject)]


def _schedules(subject: Subject) -> Iterator[Row]:
    """Whole steps of the run, and a hundredth of them, both rounded down."""
    for samples, epoch, a_step in RUNS:
        total = samples * (epoch + 1) // a_step
        expected, found = [total, math.floor(total / 100)], list(settings.linear_schedule_steps(samples, epoch, a_step))
        yield compare_value(subject, "schedule", f"{samples} samples, {epoch + 1} passes by {a_step}", expected, found)


def _schedule_of_settings(evidence: Evidence, subject: Subject) -> Row:
    """A step takes the samples of all accumulated batches."""
    chosen = settings_for(evidence.case, Path("nowhere"), bs=3, gradient_accumulation_steps=2, epoch=99)
    return compare_value(subject, "schedule", "of settings", (1000, 10), chosen.schedule(60))


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


def _rows_of_objective(evidence: Evidence, subject: Subject) -> Iterator[Row]:
    """The same of an algorithm's objective, whose alignment the settings chose."""
    mask = torch.ones(1, 5, dtype=torch.int64)
    for alignment in Alignment:
        with tempfile.TemporaryDirectory() as folder, quietly():
            loop = start_port(evidence.case, Path(folder), ttt_alignment=alignment, forward_num_total=STEPS)
            loop.accelerator.end_training()
        expected = [5 - step * (alignment is Alignment.CHAIN) for step in range(STEPS)]
        found = loop.objective.rows({"attention_mask": mask, "loss_mask": mask}).tolist()
        yield compare_value(subject, "rows", f"objective in {alignment.value}", expected, found)


def _logged(evidence: Evidence, subject: Subject) -> Iterator[Row]:
    """In chain the logged cross-entropy is a mean over the last step's rows, fewer than the first's."""
    with tempfile.TemporaryDirectory() as folder, deterministic(), quietly():
        options: dict[str, Any] = {"ttt_alignment": Alignment.CHAIN, "forward_num_total": STEPS, "noise": False}
        plan: Any = start_port(evidence.case, Path(folder), **options).plan
    batch = collate([plan.loader.dataset.sample(0)])
    batch["loss_mask"] = torch.ones_like(batch["loss_mask"])
    with torch.no_grad():
        outcome = plan.objective(batch)
    terms = -outcome.target.probabilities * outcome.steps[-1].logits.log_softmax(-1)
    rows = terms.sum(-1)[:, STEPS - 1 :]
    expected = {"train/ploss": rows.sum() / (rows.numel() + 1e-5)} if plan.objective.topk else {}
    found = {name: torch.tensor(value) for name, value in outcome.extra.items() if name == "train/ploss"}
    for name in {*expected, *found}:
        pair = expected.get(name), found.get(name)
        yield compare_named(subject, "loss", f"chain: {name}", *pair, evidence.tolerance("loss"))


def _attention_names(subject: Subject) -> Iterator[Row]:
    """``auto`` is the fast one; each is registered with transformers under a name of its own."""
    for alignment in Alignment:
        found = {each.value: attention_name(alignment, each) for each in AttentionImplementation}
        fast, plain = f"ttt_{alignment.value}_fast", f"ttt_{alignment.value}"
        yield compare_value(subject, "attention", alignment.value, {"auto": fast, "eager": plain, "fast": fast}, found)


def _defaults(subject: Subject) -> Iterator[Row]:
    """What a caller leaves out is the prototypes' choice; a loss counts nothing that it was not asked for."""
    dataset, extras = RecordDataset([], {}, 1), Extras()
    found = [dataset.max_len, dataset.alignment, dataset.noise, dataset.skip_bad, dataset.like]
    yield compare_value(subject, "defaults", "samples", [8192, Alignment.PROTOTYPE, True, False, None], found)
    yield compare_value(subject, "defaults", "loss", [False, 0], [extras.hits, extras.topk])
    yield compare_value(subject, "defaults", "batches", False, CollateVisits({}).packing)


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
