"""Acceptance by position as a picture, a line for each benchmark."""

from __future__ import annotations

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


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw what :func:`ports.evaluate.measure.measure` found; the same result gives the same bytes."""
    import matplotlib as mpl  # here, since it takes a while
    from matplotlib.figure import Figure

    places = range(1, result["speculative_tokens"] + 1)
    with mpl.rc_context({"svg.hashsalt": "acceptance"}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for row in result["files"]:
            label = f"{row['name']}: {row['acceptance_length']:.2f} tokens a pass"
            axes.plot(places, row["rate_per_position"], marker="o", label=label)
        axes.set(xlabel="position in the proposal", ylabel="accepted up to it", ylim=(0, 1), xticks=places)
        axes.set_title(f"{result['algorithm']} draft, temperature {result['temperature']:g}")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
