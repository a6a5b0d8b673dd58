"""What known differences explain of what lies between a run and its original."""

from __future__ import annotations

from dataclasses import dataclass, field

RAISED = "raised"
"""The quantity of a row that an exception left."""


@dataclass(frozen=True)
class Difference:
    """One quantity of two sides: how far apart as they are, and with every known difference switched.

    ``left``: that is too far. ``because`` has those without which it is too far, each with what is then measured.
    Infinity: one side alone has it, or it has no number. None: nothing to measure. ``detail``: both values, as they
    are; of what is left those with all switched. ``raised``: by known difference, what the run raises without it.
    """

    check: str
    quantity: str
    tensor: str
    allowed: float | None
    as_it_is: float | None
    explained: float | None
    apart: bool
    left: bool
    because: dict[str, float | None]
    detail: str = ""
    raised: dict[str, str] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Is it too far as it is, left, or only equal since known differences cancel out?"""
        return self.apart or self.left or bool(self.because)


@dataclass(frozen=True)
class Ledger:
    """What known differences, texts by id, explain of the difference between a run and its original in one case."""

    case: str
    run: str
    known_differences: dict[str, str]
    lines: tuple[Difference, ...]

    def raised(self, difference: str | None = None) -> list[str]:
        """What the run raises, and where: without this known difference, or as it is."""
        lines = [line for line in self.lines if line.quantity == RAISED]
        if difference is None:
            return [line.detail for line in lines if line.apart]
        return [line.raised[difference] for line in lines if difference in line.because]

    def effects(self, difference: str) -> dict[str, float]:
        """By quantity, the largest difference that leaving this known difference out makes."""
        found: dict[str, float] = {}
        for line in self.lines:
            size = line.because.get(difference)
            if size is not None:
                found[line.quantity] = max(size, found.get(line.quantity, 0.0))
        return found
