"""The verdict of a parity run for people (terminal, HTML) and for machines (JSON)."""

from __future__ import annotations

from parity.report.html import render_html, write_html
from parity.report.json_file import read_json, write_json
from parity.report.scaling import write_scaling
from parity.report.summary import verdict_line
from parity.report.terminal import print_report

__all__ = ["print_report", "read_json", "render_html", "verdict_line", "write_html", "write_json", "write_scaling"]
