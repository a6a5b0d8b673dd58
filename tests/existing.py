"""A pair of ``examples/pairs`` whose two sides are others': run once, read by line, held to its recording."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from parity import KitReport, Pair, replace_functions, run_pair
from parity.differences import Difference, Ledger
from parity.pair import find_pair
from parity.study import Switch, switched
from parity.trace import Trace

CORE = "speculators.models.dflash.core"
SHIFT = cycle((1, 0))  # the first call of a forward is for positions, the second for what is gathered


def later_anchors(real: Any, **named: Any) -> Any:
    return real(**{**named, "anchor_positions": named["anchor_positions"] + 1})


FAULTS: dict[str, tuple[Switch, str, str, str]] = {
    "anchor mask": (
        replace_functions({f"{CORE}:create_anchor_block_mask_mod": later_anchors}),
        "forward",
        "layers.0",
        "its input `attention_mask` already differs, at (0, 0, 0, 12): expected False, found True",
    ),
    "positions": (
        replace_functions({f"{CORE}:get_base_indices_for_anchored_blocks": lambda real, *x: real(*x) + next(SHIFT)}),
        "forward",
        "rotary_emb",
        "its input `position_ids` already differs, at (0, 37): expected 12, found 13, made outside of any module",
    ),
    "one side clips": (
        lambda side: replace(side, clip=side.clips, step=lambda _, optimizer: optimizer.step()),
        "clip",
        "(whole)",
        "8 of 8 steps are",
    ),
}
"""Of Speculators' drafts that share DFlash's core: the switch, the check, the place and the words that name it."""

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

    def faulty(self, fault: Switch, case: int = 0, without: str = "") -> KitReport:
        """One case with every known difference switched but one, and a fault in the port."""
        pair = self.pair
        port = switched(pair.port, [difference for difference in pair.known_differences if difference.id != without])
        return run_pair(replace(pair, port=fault(port), known_differences=(), cases=[pair.find_cases(None)[case]]))

    def assert_blamed(self, fault: Switch, check: str, module: str, words: str) -> None:
        """A planted fault is named by its check, at its place, and nothing else fails."""
        found = self.faulty(fault)
        assert found.failed == (check,)
        assert found.first is not None
        assert found.first.module == module
        assert words in found.first.detail

    def recorded(self, case: str) -> Trace:
        with self.pair.original.trace(next(one for one in self.pair.cases if one.name == case)) as ran:
            return ran.trace

    def assert_recorded(self, checkout: Path) -> None:
        """What a checkout computes is what was recorded."""
        pair = self.pair.at(checkout, None)
        for case in pair.find_cases(None):
            with pair.original.trace(pair.for_original(case)) as ran:
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
