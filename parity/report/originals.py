"""The studies of the other originals as a Markdown page and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from parity.prototypes.explain.study import Finding, Study, kind_of
from parity.prototypes.others import OTHERS
from parity.report.files import write_beside
from parity.report.html import markdown
from parity.report.json_file import plain
from parity.report.numbers import short
from parity.report.settings import setting_tables

ONE_SIDE = "only one has it"
KINDS = ("features", "hidden", "logits", "loss", "gradients")


def write_originals(
    studies: Sequence[Study], output: Path, machine: Mapping[str, Any], registered: Sequence[str]
) -> None:
    """Write the page; ``registered`` are the algorithms that Speculators has by itself."""
    write_beside(output, render_originals(studies, machine, registered))


def render_originals(studies: Sequence[Study], machine: Mapping[str, Any], registered: Sequence[str]) -> str:
    """The page as text."""
    names = ("cpu", "device", "python", "torch", "transformers", "speculators")
    return (
        markdown()
        .get_template("originals.md.j2")
        .render(
            machine="Machine: " + ", ".join(f"{name} {machine[name]}" for name in names if machine.get(name)) + ".",
            passed=all(study.passed for study in studies),
            studies=[_study(study) for study in studies],
            settings=setting_tables(studies),
            registry=registry_line(registered),
            kinds=KINDS,
        )
    )


def registry_line(registered: Sequence[str]) -> str:
    """Whether Speculators has a HASS to compare with."""
    has = "a" if "hass" in registered else "no"
    return f"Speculators registers {', '.join(registered)}: {has} HASS to compare with."


def write_studies_json(studies: Sequence[Study], output: Path) -> None:
    """Everything the page is made from."""
    document = {
        "passed": all(study.passed for study in studies),
        "studies": [{**asdict(study), "passed": study.passed} for study in studies],
    }
    write_beside(output, json.dumps(plain(document), indent=1, allow_nan=False) + "\n")


def print_studies(studies: Sequence[Study], console: Console) -> None:
    """A table a study, and what failed."""
    for study in studies:
        table = Table(
            "quantity",
            "as it is",
            "explained",
            "bound",
            "because of",
            title=f"{study.original} against {study.against}",
        )
        for line in map(_finding, study.findings):
            table.add_row(line["quantity"], line["difference"], line["explained"], line["bound"], line["because"])
        console.print(table)
        for row in study.rows:
            if not row.passed:
                console.print(f"FAILED {row.check} {row.quantity} {row.tensor}: {row.detail}", markup=False)
    failed = sum(not row.passed for study in studies for row in study.rows)
    total = sum(len(study.rows) for study in studies)
    console.print(f"{'FAIL' if failed else 'PASS'}: {total} comparisons, {failed or 'none'} failed")


def _study(study: Study) -> dict[str, Any]:
    other = OTHERS[study.original.lower()]
    return {
        "title": other.title,
        "original": study.original,
        "against": study.against if study.against.startswith("Speculators") else f"the {study.against}",
        "case": study.case,
        "repository": other.repository,
        "commit": other.commit,
        "worst": {quantity: worst(study, quantity) for quantity in ("logits", "loss, total", "gradients")},
        "explained": size(max(_number(finding.left.measured) for finding in study.findings)),
        "findings": [_finding(finding) for finding in study.findings],
        "causes": [
            {"id": cause.id, "what": cause.what, "effects": {kind: _effect(study, cause.id, kind) for kind in KINDS}}
            for cause in study.causes
        ],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "quantity": finding.quantity,
        "difference": size(_number(finding.difference)),
        "explained": size(_number(finding.left.measured)),
        "bound": short(finding.left.allowed),
        "passed": finding.left.passed,
        "because": ", ".join(name for name, _ in finding.because) or "nothing",
    }


def worst(study: Study, quantity: str) -> str:
    """The largest difference that has a number, of a quantity or of a kind of quantities."""
    sizes = [f.difference for f in study.findings if quantity in (f.quantity, kind_of(f.quantity))]
    known = [size for size in sizes if size is not None]
    return short(max(known)) if known else ONE_SIDE


def _effect(study: Study, cause: str, kind: str) -> str:
    effect = study.effect(cause, kind)
    return "" if effect is None else size(effect)


def _number(value: float | None) -> float:
    return math.inf if value is None else value


def size(value: float) -> str:
    """A difference; infinite where one side has no such tensor."""
    return ONE_SIDE if math.isinf(value) else short(value, digits=2)
