"""What a comparison of two sides found, to print, to raise, or to write as HTML and JSON."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from parity.locate import Finding
from parity.report import print_report, write_html, write_json
from parity.verdict import Report, Row, Status


class ParityError(AssertionError):
    """The two sides do not agree; the message is the whole report."""


@dataclass(frozen=True)
class KitReport:
    """Rows in the order in which a fault travels, and the first place where it goes wrong."""

    report: Report
    first: Finding | None = None

    @property
    def rows(self) -> list[Row]:
        return self.report.rows

    @property
    def passed(self) -> bool:
        return self.report.passed

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that failed by their own fault, in order."""
        return tuple(dict.fromkeys(row.check for row in self.rows if row.status is Status.FAILED))

    def raise_if_failed(self) -> None:
        """Raises ParityError (an AssertionError) with the printed report."""
        if not self.passed:
            raise ParityError(str(self))

    def write_html(self, path: str | Path) -> None:
        """The report as one HTML file."""
        write_html(self.report, path)

    def write_json(self, path: str | Path) -> None:
        """Every row as JSON."""
        write_json(self.report, path)

    def __str__(self) -> str:
        text = io.StringIO()
        print_report(self.report, Console(file=text, width=140))
        return text.getvalue() + (f"first: {self.first}\n" if self.first else "")
