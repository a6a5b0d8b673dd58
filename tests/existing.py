"""A pair of ``examples/pairs`` whose two sides are others': run once, read by line, held to its recording."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from parity import KitReport, Pair, run_pair
from parity.pair import find_pair
from parity.trace import Trace
from parity.verdict import Difference, Ledger

PAIRS = Path(__file__).resolve().parents[1] / "examples" / "pairs"


@dataclass
class Existing:
    """``FILE.py:PAIR`` of that folder."""

    name: str

    @property
    def file(self) -> Path:
        return PAIRS / self.name.partition(":")[0]

    @property
    def pair(self) -> Pair:
        return find_pair(str(PAIRS / self.name))

    @cached_property
    def result(self) -> KitReport:
        return run_pair(self.pair)

    def ledger(self, case: str) -> Ledger:
        return next(one for one in self.result.report.ledgers if one.case == case)

    def line(self, case: str, quantity: str, tensor: str) -> Difference:
        """Of what differs as it is."""
        lines = (line for line in self.ledger(case).lines if line.apart)
        return next(line for line in lines if (line.quantity, line.tensor) == (quantity, tensor))

    def recorded(self, case: str) -> Trace:
        with self.pair.original.trace(next(one for one in self.pair.cases if one.name == case)) as ran:  # type: ignore[union-attr]
            return ran.trace

    def assert_recorded(self, checkout: Path) -> None:
        """What a checkout computes is what was recorded."""
        pair = self.pair.at(checkout, None)
        for case in pair.find_cases(None):
            with pair.original.trace(pair.for_original(case)) as ran:  # type: ignore[union-attr]
                mine, kept = ran.trace, self.recorded(case.name)
            assert json.loads(json.dumps(mine.configuration)).keys() == kept.configuration.keys()
            assert mine.tensors.keys() == kept.tensors.keys()
            for name, value in mine.tensors.items():
                torch.testing.assert_close(value, kept.tensors[name], rtol=1e-4, atol=1e-6)


def own_lines(source: str) -> int:
    """Neither blank nor a comment, a docstring or an import."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
        found = node.body[0] if documented else node if isinstance(node, (ast.Import, ast.ImportFrom)) else None
        left_out |= set(range(found.lineno, found.end_lineno + 1)) if found else set()
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for at, line in lines if at not in left_out)
