"""What known differences explain: what a case comes to, and a table of every quantity that differs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.differences import RAISED, Difference, Ledger
from parity.report.summary import count, short
from parity.verdict import Row

LINES = ("quantity", "as it is", "explained", "allowed", "because of")
SHARED = {"forward": "output", "gradients": "gradient", "curve": "number"}
"""Checks, and what of theirs is counted."""

ONE_SIDE = "only one has it"
AS_IT_IS = "the port as it is raises"


def headline(ledger: Ledger) -> str:
    """``16 of 24 quantities differ as they are, 0 left unexplained``."""
    differ, left = sum(line.apart for line in ledger.lines), sum(line.left for line in ledger.lines)
    if any(line.apart and line.check == "run" for line in ledger.lines):
        return f"{AS_IT_IS}, {left} of {count(len(ledger.lines), 'quantity', 'quantities')} left unexplained"
    return (
        f"{differ} of {count(len(ledger.lines), 'quantity', 'quantities')} differ as they are, {left} left unexplained"
    )


def difference_lines(ledger: Ledger) -> list[list[str]]:
    """A line for each quantity that differs, and for each that is left."""
    return [_line(line) for line in ledger.lines if line.differs]


def _line(line: Difference) -> list[str]:
    as_it_is = line.detail if line.quantity == RAISED and line.apart else size(line.as_it_is, line.quantity)
    sizes = as_it_is, size(line.explained, line.quantity) + (" LEFT" if line.left else ""), short(line.allowed, 2)
    because = ", ".join(line.because) or ("nothing" if line.left else "several at once")
    return [line.tensor or line.quantity, *sizes, because]


def size(value: float | None, quantity: str = "") -> str:
    """Two digits, or entries of a configuration, each parameter's settings one; what one side lacks has no number."""
    if value is not None and math.isinf(value):
        return ONE_SIDE
    counted = quantity == "configuration" and bool(value)
    return count(int(value or 0), "entry", "entries") if counted else short(value, digits=2)


def values(line: Difference) -> str:
    """The original's and the port's as they are, ``0.0003 / 0.0``, and what they are of."""
    found = re.fullmatch(r"found (.*), expected (.*)", line.detail)
    words = [line.quantity] * line.quantity.startswith("initial")
    return " ".join([*words, line.tensor, f"{found[2]} / {found[1]}" if found else line.detail])


def summed_up(ledger: Ledger, failed: Iterable[Row] = ()) -> list[tuple[str, str]]:
    """What a run comes to, by lines of a heading (empty: as above) and a text; ``failed`` rows are told elsewhere."""
    of = {
        check: [line for line in ledger.lines if line.check == check] for check in (line.check for line in ledger.lines)
    }
    shared = [_shared(of[check], word) for check, word in SHARED.items() if check in of]
    apart = {check: [line for line in lines if line.apart and line.quantity != RAISED] for check, lines in of.items()}
    drawn = [line for line in of.get("samplers", ()) if line.quantity == "candidates"]
    draws = [": ".join(filter(None, (line.tensor, line.detail))) for line in drawn]
    setup = [line for check in ("configuration", "initialisation") for line in apart.get(check, ())]
    trained = [line for line in apart.get("round_trip", ()) if line.tensor.startswith("requires_grad.")]
    reopened = [values(line) for line in apart.get("round_trip", ()) if line not in trained]
    reopened += [f"{count(len(trained), 'parameter')} trained or frozen otherwise"] * bool(trained)
    mine = (row for row in failed if (row.case, row.run) == (ledger.case, ledger.run or "port"))
    elsewhere = {(row.check, row.quantity, row.tensor) for row in mine}
    left = [line for line in ledger.lines if line.left]
    new = [values(line) for line in left if (line.check, line.quantity, line.tensor) not in elsewhere]
    shown = f", {len(left) - len(new)} of them under Failed" if len(new) < len(left) else ""
    texts = {
        "raised": [f"{AS_IT_IS} {said}" for said in ledger.raised()],
        "shared": ["; ".join(shared)] * bool(shared),
        "draws": [f"{text}; the original's are replayed" for text in draws],
        "known": [*_known_differences(ledger)],
        "setup": [", ".join(map(values, setup))] * bool(setup),
        "reopened": [", ".join(reopened)] * bool(reopened),
        "left": [f"{len(left)} unexplained{shown}", *new],
    }
    return [("" if n else word, text) for word, lines in texts.items() for n, text in enumerate(lines)]


def _known_differences(ledger: Ledger) -> Iterator[str]:
    """What each comes to, and in one line those that explain nothing in this case."""
    idle = []
    for name, text in ledger.known_differences.items():
        effects, raised = ledger.effects(name), ledger.raised(name)
        kinds = [kind for kind, most in effects.items() if math.isfinite(most)] or [*effects]
        kind = "loss" if "loss" in kinds else next(iter(kinds), "")
        if raised:
            yield f"{name}, {text}: without it the port raises {'; '.join(raised)}"
        elif kind:
            yield f"{name}, {kind} {size(effects[kind], kind)} without it: {text}"
        else:
            idle.append(name)
    if idle:
        yield f"explain nothing here: {', '.join(idle)}"


def _shared(lines: Sequence[Difference], word: str) -> str:
    explained = [line.explained for line in lines if not line.left and line.explained is not None]
    equal, worst = explained.count(0.0), max(explained, default=0.0)
    texts = [f"{count(equal, word)} bit-equal"] * bool(equal)
    return ", ".join([*texts, *[f"{count(len(explained) - equal, word)} <= {size(worst)}"] * bool(worst)])


def print_ledgers(ledgers: list[Ledger], failed: list[Row], console: Console) -> None:
    """What every case comes to; all quantities and all that a known difference explains are in the page and in JSON.

    ``failed`` rows, which are printed already, are not named again.
    """
    for ledger in ledgers:
        console.print(Text(f"\nKnown differences · {ledger.case}: {headline(ledger)}", style="bold"), soft_wrap=True)
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        for line in summed_up(ledger, failed):
            table.add_row(*map(Text, line))
        console.print(table)
