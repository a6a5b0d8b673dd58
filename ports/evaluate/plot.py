"""What a measurement leaves: its result as JSON, and lines as a picture."""

from __future__ import annotations

import json as json_format
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from ports.errors import InputError
from ports.evaluate.intervals import Estimate
from ports.files import check_output_file
from ports.training.checkpoint import write_file

FORMATS = (".svg", ".png")
CROWDED = 30
"""Places of a line that are marked no more."""


def check_outputs(json: Path | None, plot: Path | None) -> None:
    """Refuse (InputError) what could not be written or drawn, before anything is measured."""
    if json is not None:
        check_output_file(json, "--json")
    if plot is not None:
        check_plot(plot)


def check_plot(file: Path) -> None:
    """Refuse (InputError) what could not be drawn, before anything is measured."""
    if file.suffix not in FORMATS:
        raise InputError(
            file, "--plot", f"a name with {file.suffix or 'no ending'}", f"one with {' or '.join(FORMATS)}"
        )
    if find_spec("matplotlib") is None:
        raise InputError(file, "--plot", "no matplotlib", "it installed: pip install matplotlib")
    check_output_file(file, "--plot")


def write_json(file: Path, result: Mapping[str, Any]) -> None:
    """The result, whole or not at all; in place only what a rename would not reach, as /dev/stdout.

    Raises:
        InputError: it could not be written; what was there before is still there.
    """
    content = (json_format.dumps(result, indent=1) + "\n").encode()
    odd = file.is_symlink() or (file.exists() and not file.is_file())
    if odd or not os.access(file.parent, os.W_OK):
        file.write_bytes(content)
    else:
        write_file(file, content)


class Panel(NamedTuple):
    """``lines`` by their labels over ``places``, estimates with their intervals; ``settings`` are matplotlib's."""

    places: Sequence[float]
    lines: Mapping[str, Sequence[float | Estimate]]
    settings: Mapping[str, Any]


def draw(file: Path, *panels: Panel) -> None:
    """Draw them side by side, the same bytes each time."""
    import matplotlib as mpl  # here, since it takes a while
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "measured"}):
        figure = Figure(figsize=(6 * len(panels), 4), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            _fill(axes, panel)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _fill(axes: Any, panel: Panel) -> None:
    marker = "o" if len(panel.places) < CROWDED else None
    for label, values in panel.lines.items():
        told = [each if isinstance(each, Estimate) else Estimate(each, each, each) for each in values]
        halves = [each.high - each.value if isfinite(each.high) else 0.0 for each in told]
        means = [each.value for each in told]
        name = label.replace("$", r"\$")  # no formula
        axes.errorbar(panel.places, means, halves if any(halves) else None, marker=marker, capsize=3, label=name)
    axes.set(**panel.settings)
    axes.grid(alpha=0.3)
    axes.legend()
