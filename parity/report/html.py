"""The report as one HTML file that needs nothing else: no network, no scripts to be useful, light and dark."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from parity.report import sections
from parity.report.charts import UNITS, curve_panels
from parity.report.files import write_beside
from parity.report.flow import gradient_flows
from parity.report.matrix import matrix
from parity.report.numbers import count, scaled, short
from parity.report.summary import margin, unique
from parity.verdict import Report

HERE = Path(__file__).parent


def write_html(report: Report, path: str | Path, title: str = "Parity report") -> None:
    """Write the page to ``path``, whole or not at all."""
    write_beside(Path(path), render_html(report, title))


def render_html(report: Report, title: str = "Parity report") -> str:
    """The page as text. Everything the report holds is escaped."""
    checks, lines = matrix(report)
    template = environment().get_template("template.html.j2")
    return template.render(
        title=title,
        report=report,
        verdict=sections.verdict(report),
        checks=checks,
        lines=lines,
        failures=sections.failures(report),
        blocked=sections.blocked(report),
        errors=sections.errors(report),
        curves={quantity: curve_panels(report, quantity) for quantity in _quantities(report)},
        flows=gradient_flows(report),
        environment=sections.environment_groups(report.environment),
    )


def _quantities(report: Report) -> list[str]:
    """Loss first: it is what readers look for."""
    return sorted(unique(curve.quantity for curve in report.curves), key=lambda quantity: quantity != "loss")


def environment() -> Environment:
    """The templates of the reports: everything escaped, what is missing an error."""
    made = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(short=short, scaled=scaled, count=count, breakable=breakable)
    made.globals.update(margin=margin, tokens_per_second=sections.tokens_per_second, units=UNITS)
    return made


def markdown() -> Environment:
    """The same for pages in Markdown, which are not escaped."""
    made = environment()
    made.autoescape = False
    return made


def breakable(name: str) -> Markup:
    """The name, escaped, with the places marked where a narrow column may break it."""
    escaped = str(Markup.escape(name))
    for mark in "._/":
        escaped = escaped.replace(mark, f"{mark}<wbr>")
    return Markup(escaped)
