"""The ways of a pair and of a dialogue, drawn from the imports: ``python -m docs.ways`` writes ``docs/ways.md``.

A module stands one row below the lowest that imports it, so that everything points downwards.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "ways.md"
WAYS = {
    "A pair, through `parity run`": ("parity.cli", ("parity.",), ("parity.prototypes",)),
    "A dialogue, through `speculator draft`": ("ports.draft.command", ("ports.",), ("ports.cli",)),
}
"""What begins a way, what belongs to it, and what stands beside it."""


def modules() -> dict[str, Path]:
    """The project's modules, by dotted name."""
    files = sorted(file for package in ("parity", "ports") for file in (ROOT / package).rglob("*.py"))
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    return {".".join(part for part in each if part != "__init__"): file for each, file in zip(parts, files)}


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """Every known module that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {part if part in known else node.module for part in parts}
    return {name for name in found & known.keys() if known[name] != file}


def levels(start: str, within: tuple[str, ...], beside: tuple[str, ...]) -> list[list[str]]:
    """What ``start`` reaches, the modules of a row in the order of their names.

    Raises:
        graphlib.CycleError: modules that import each other.
    """
    known, graph, left = modules(), {}, [start]
    while left:
        name = left.pop()
        if name not in graph:
            found = imports(known[name], known)
            graph[name] = {each for each in found if each.startswith(within) and not each.startswith(beside)}
            left += graph[name]
    depth = dict.fromkeys(graph, 0)
    for name in reversed(list(TopologicalSorter(graph).static_order())):
        for each in graph[name]:
            depth[each] = max(depth[each], depth[name] + 1)
    return [sorted(name for name in graph if depth[name] == row) for row in range(max(depth.values()) + 1)]


def drawn() -> str:
    """The page."""
    lines = ["# The two ways", "", *(__doc__ or "").partition("\n\n")[2].strip().splitlines(), ""]
    for title, way in WAYS.items():
        rows = [", ".join(name.partition(".")[2] for name in row) for row in levels(*way)]
        lines += [f"## {title}", "", "| | |", "| --- | --- |"]
        lines += [*(f"| {number} | {row} |" for number, row in enumerate(rows, 1)), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(drawn())
