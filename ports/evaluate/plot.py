"""Lines as a picture: the evaluator's acceptance by position, the bench's tokens per second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ports.errors import InputError
from ports.files import check_output_file

FORMATS = (".svg", ".png")


def check_plot(file: Path) -> None:
    """Refuse (InputError) what could not be drawn, before anything is measured."""
    if file.suffix not in FORMATS:
        raise InputError(
            file, "--plot", f"a name with {file.suffix or 'no ending'}", f"one with {' or '.join(FORMATS)}"
        )
    if find_spec("matplotlib") is None:
        raise InputError(file, "--plot", "no matplotlib", "it installed: pip install matplotlib")
    check_output_file(file, "--plot")


def draw(file: Path, places: Sequence[int], lines: Mapping[str, Sequence[float]], **axes_settings: Any) -> None:
    """Draw ``lines`` by their labels over ``places``, the same bytes each time; ``axes_settings`` are of matplotlib."""
    import matplotlib as mpl  # here, since it takes a while
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "measured"}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for label, values in lines.items():
            axes.plot(places, values, marker="o", label=label)
        axes.set(xticks=places, **axes_settings)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
