"""The studies of the other originals as a Markdown page, as JSON and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Lines

from parity.prototypes.explain.study import Finding, Study, kind_of
from parity.prototypes.others import OTHERS
from parity.report.page import Table, templates
from parity.report.summary import dumps, short, write_whole

ONE_SIDE = "only one has it"
KINDS = ("features", "hidden", "logits", "loss", "gradients")


def write_originals(
    studies: Sequence[Study], output: Path, machine: Mapping[str, Any], registered: Sequence[str]
) -> None:
    """Write the page; ``registered`` are the algorithms that Speculators has by itself."""
    write_whole(output, render_originals(studies, machine, registered))


def render_originals(studies: Sequence[Study], machine: Mapping[str, Any], registered: Sequence[str]) -> str:
    """The page as text."""
    made = templates(autoescape=False)
    made.filters.update(outcome=_outcome, numbers=lambda values: ", ".join(f"{value:g}" for value in values))
    names = ("cpu", "device", "python", "torch", "transformers", "speculators")
    return made.get_template("originals.md.j2").render(
        machine=", ".join(f"{name} {machine[name]}" for name in names if machine.get(name)),
        passed=all(study.passed for study in studies),
        studies=studies,
        others=OTHERS,
        overview=_overview(studies).markdown(),
        findings=lambda study: _findings(study).markdown(),
        causes=lambda study: _causes(study).markdown(),
        registered=registered,
        settings={study.original.lower(): study.facts for study in reversed(studies)},
    )


def write_studies_json(studies: Sequence[Study], output: Path) -> None:
    """Everything the page is made from."""
    found = [{**asdict(study), "passed": study.passed} for study in studies]
    write_whole(output, dumps({"passed": all(study.passed for study in studies), "studies": found}))


def print_studies(studies: Sequence[Study], console: Console) -> None:
    """A table a study, and what failed."""
    for study in studies:
        findings = _findings(study)
        table = Lines(*(name for name, _ in findings.columns), title=f"{study.original} against {study.against}")
        for line in findings.lines:
            table.add_row(*line)
        console.print(table)
    rows = [row for study in studies for row in study.rows]
    for row in rows:
        if not row.passed:
            console.print(f"FAILED {row.check} {row.quantity} {row.tensor}: {row.detail}", markup=False)
    failed = sum(not row.passed for row in rows)
    verdict = "PASS" if rows and not failed else "FAIL"
    console.print(f"{verdict}: studies of other originals {len(rows) - failed} of {len(rows)}", highlight=False)


def _overview(studies: Sequence[Study]) -> Table:
    lines = []
    for study in studies:
        against = study.against if study.against.startswith("Speculators") else f"the {study.against}"
        apart = [worst(study, quantity) for quantity in ("logits", "loss, total", "gradients")]
        left = size(max(_number(finding.left.measured) for finding in study.findings))
        title = OTHERS[study.original.lower()].title
        lines.append([title, against, f"`{study.case}`", *apart, left, str(len(study.causes))])
    names = ("original", "against", "case", "logits differ by", "total loss by", "gradients by", "explained, worst")
    return Table(tuple((name, "") for name in (*names, "causes")), lines)


def _findings(study: Study) -> Table:
    columns = tuple((name, "") for name in ("quantity", "as it is", "explained", "bound", "equal", "because of"))
    return Table(columns, [_finding(finding) for finding in study.findings])


def _finding(finding: Finding) -> list[str]:
    sizes = (size(_number(finding.difference)), size(_number(finding.left.measured)), short(finding.left.allowed))
    because = ", ".join(name for name, _ in finding.because) or "nothing"
    return [finding.quantity, *sizes, "yes" if finding.left.passed else "NO", because]


def _causes(study: Study) -> Table:
    effects = {cause: [study.effect(cause.id, kind) for kind in KINDS] for cause in study.causes}
    lines = [
        [cause.id, cause.what, *("" if effect is None else size(effect) for effect in found)]
        for cause, found in effects.items()
    ]
    return Table((("cause", ""), ("what it does", ""), *((f"{kind} without it", "") for kind in KINDS)), lines)


def worst(study: Study, quantity: str) -> str:
    """The largest difference that has a number, of a quantity or of a kind of quantities."""
    sizes = [f.difference for f in study.findings if quantity in (f.quantity, kind_of(f.quantity))]
    known = [size for size in sizes if size is not None]
    return short(max(known)) if known else ONE_SIDE


def size(value: float) -> str:
    """A difference; infinite where one side has no such tensor."""
    return ONE_SIDE if math.isinf(value) else short(value, digits=2)


def _number(value: float | None) -> float:
    return math.inf if value is None else value


def _outcome(message: str, well: str) -> str:
    """How a script that was tried ended: a message that is safe within a table's cell, or ``well``."""
    return f"stops: `{message.replace('|', '/').replace('`', '')}`" if message else well
