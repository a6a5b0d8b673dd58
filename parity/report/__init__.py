"""The verdict of a parity run for people (terminal, HTML) and for machines (JSON)."""

from __future__ import annotations

from parity.report.page import write_html
from parity.report.summary import write_json
from parity.report.terminal import UNCUT, print_report, stdout_console

__all__ = ["UNCUT", "print_report", "stdout_console", "write_html", "write_json"]
