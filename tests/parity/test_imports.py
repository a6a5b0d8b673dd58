"""Which module may import which: no circle, nothing upwards, and a core that knows no port and no prototype."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(file for package in ("parity", "ports") for file in (ROOT / package).rglob("*.py"))


def name_of(file: Path) -> str:
    return ".".join(part for part in file.relative_to(ROOT).with_suffix("").parts if part != "__init__")


MODULES = {name_of(file): file for file in FILES}


def imported(file: Path) -> set[str]:
    """Every module that a file imports anywhere in it, under ``TYPE_CHECKING`` and inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {part if part in MODULES else node.module for part in parts}
    return found


GRAPH = {name: imported(file) & MODULES.keys() - {name} for name, file in MODULES.items()}


def test_there_is_no_circle() -> None:
    order = list(TopologicalSorter(GRAPH).static_order())
    assert len(order) == len(MODULES)


NOT_CORE = {"ports", "prototypes", "suite"}
CORE = [file for file in FILES if not NOT_CORE & set(file.relative_to(ROOT).with_suffix("").parts)]


@pytest.mark.parametrize("file", CORE, ids=name_of)
def test_the_core_knows_no_port_and_no_prototype(file: Path) -> None:
    assert not {name for name in imported(file) if name.partition(".")[0] == "ports"}
    assert not {name for name in imported(file) if name.startswith("parity.prototypes")}


def test_only_commands_and_plugin_are_above_a_run() -> None:
    above = {name for name, found in GRAPH.items() if "parity.run" in found and "prototypes" not in name}
    assert above <= {"parity", "parity.cli", "parity.plugin", "parity.power", "parity.scaffold", "parity.single"}
