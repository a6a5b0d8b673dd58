"""Which failure explains which: what fails because an earlier check failed says nothing about its own subject."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from parity.verdict import Row, Status

Follows = Mapping[str, tuple[str, ...]]
"""For every check those whose failure explains a failure of it."""


def explained(rows: Iterable[Row], follows: Follows) -> list[Row]:
    """The rows, those downstream of another check's failure blocked."""
    rows = list(rows)
    failed = {row.check for row in rows if row.status is Status.FAILED}
    return [_explained(row, failed, follows) for row in rows]


def _explained(row: Row, failed: set[str], follows: Follows) -> Row:
    found = cause(row.check, failed, follows) if row.status is Status.FAILED else None
    if found is None:
        return row
    return replace(row, status=Status.BLOCKED, detail=f"follows from {found}. {row.detail}")


def cause(name: str, failed: set[str], follows: Follows) -> str | None:
    """The first failed check upstream of ``name``."""
    for parent in follows.get(name, ()):
        found = cause(parent, failed, follows) or (parent if parent in failed else None)
        if found:
            return found
    return None
