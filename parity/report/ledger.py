"""What causes explain, as tables: one of the causes, one of every quantity that differs."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.report.summary import count, short
from parity.verdict import Difference, Ledger

CAUSES = ("cause", "what the original does", "without it")
LINES = ("quantity", "as it is", "explained", "allowed", "because of")
ONE_SIDE = "one side only"


def told(ledger: Ledger) -> str:
    """``16 quantities differ as they are, 0 left unexplained``."""
    differ, left = sum(line.apart for line in ledger.lines), sum(line.left for line in ledger.lines)
    verb = "differs as it is" if differ == 1 else "differ as they are"
    return f"{count(differ, 'quantity', 'quantities')} of {count(len(ledger.lines))} {verb}, {left} left unexplained"


def cause_lines(ledger: Ledger) -> list[list[str]]:
    """A line for each cause: by quantity the largest difference without it."""
    effects = {name: ledger.effects(name) for name in ledger.causes}
    sizes = {
        name: ", ".join(f"{quantity} {size(value)}" for quantity, value in found.items())
        for name, found in effects.items()
    }
    return [[name, text, sizes[name] or "nothing changes"] for name, text in ledger.causes.items()]


def difference_lines(ledger: Ledger) -> list[list[str]]:
    """A line for each quantity that differs, and for each that is left."""
    return [_line(line) for line in ledger.lines if line.differs]


def _line(line: Difference) -> list[str]:
    sizes = size(line.as_it_is), size(line.explained) + (" LEFT" if line.left else ""), short(line.allowed, 2)
    because = ", ".join(line.because) or ("nothing" if line.left else "several at once")
    return [f"{line.check} {line.tensor or line.quantity}", *sizes, because]


def size(value: float | None) -> str:
    """Two digits; what one side lacks has no number."""
    return ONE_SIDE if value is not None and math.isinf(value) else short(value, digits=2)


def print_ledgers(ledgers: list[Ledger], console: Console) -> None:
    """Both tables of every case."""
    for ledger in ledgers:
        console.print(Text(f"\nCauses · {ledger.case}: {told(ledger)}", style="bold"))
        for names, lines in ((CAUSES, cause_lines(ledger)), (LINES, difference_lines(ledger))):
            table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, header_style="bold")
            for name in names:
                table.add_column(name, justify="right" if name in LINES[1:4] else "left")
            for line in lines:
                table.add_row(*map(Text, line))
            console.print(table)
