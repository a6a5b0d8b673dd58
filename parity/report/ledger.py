"""What causes explain, as tables: of the causes, of kinds of quantities, and of every quantity that differs."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.report.summary import count, short
from parity.verdict import Difference, Ledger

CAUSES = ("cause", "what the original does", "without it")
KINDS = ("quantity", "compared", "differ", "as it is", "explained", "left")
LINES = ("quantity", "as it is", "explained", "allowed", "because of")
ONE_SIDE = "only one has it"


def told(ledger: Ledger) -> str:
    """``16 of 24 quantities differ as they are, 0 left unexplained``."""
    differ, left = sum(line.apart for line in ledger.lines), sum(line.left for line in ledger.lines)
    return (
        f"{differ} of {count(len(ledger.lines), 'quantity', 'quantities')} differ as they are, {left} left unexplained"
    )


def cause_lines(ledger: Ledger) -> list[list[str]]:
    """A line for each cause: by quantity the largest difference without it."""
    effects = {name: ledger.effects(name).items() for name in ledger.causes}
    sizes = {name: ", ".join(f"{what} {size(value)}" for what, value in found) for name, found in effects.items()}
    return [[name, text, sizes[name] or "nothing changes"] for name, text in ledger.causes.items()]


def kind_lines(ledger: Ledger) -> list[list[str]]:
    """A line for each kind of quantity: how many there are, and the worst of them."""
    found: dict[str, list[Difference]] = {}
    for line in ledger.lines:
        found.setdefault(line.quantity, []).append(line)
    return [
        [
            name,
            *map(str, (len(lines), sum(line.apart for line in lines))),
            *(
                size(max(filter(None, sizes), default=0.0))
                for sizes in zip(*((x.as_it_is, x.explained) for x in lines))
            ),
            str(sum(line.left for line in lines)),
        ]
        for name, lines in found.items()
    ]


def difference_lines(ledger: Ledger) -> list[list[str]]:
    """A line for each quantity that differs, and for each that is left."""
    return [_line(line) for line in ledger.lines if line.differs]


def _line(line: Difference) -> list[str]:
    sizes = size(line.as_it_is), size(line.explained) + (" LEFT" if line.left else ""), short(line.allowed, 2)
    because = ", ".join(line.because) or ("nothing" if line.left else "several at once")
    return [line.tensor or line.quantity, *sizes, because]


def size(value: float | None) -> str:
    """Two digits; what one side lacks has no number."""
    return ONE_SIDE if value is not None and math.isinf(value) else short(value, digits=2)


def print_ledgers(ledgers: list[Ledger], console: Console) -> None:
    """Causes and kinds of quantities of every case; what is left is among the failures."""
    for ledger in ledgers:
        console.print(Text(f"\nCauses · {ledger.case}: {told(ledger)}", style="bold"))
        for names, lines in ((CAUSES, cause_lines(ledger)), (KINDS, kind_lines(ledger))):
            table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, header_style="bold")
            for name in names:
                table.add_column(name, justify="right" if name in KINDS[1:] else "left")
            for line in lines:
                table.add_row(*map(Text, line))
            console.print(table)
