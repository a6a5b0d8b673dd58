"""The mutants that cosmic-ray's operators make of a module."""

from __future__ import annotations

import ast
import difflib
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from mutation.rules import SAME, Place, left_out, rule_at
from mutation.scope import ROOT

WITH_ARGUMENTS = ("VariableReplacer", "VariableInserter")
"""Operators that want to be told names of variables: they are not used."""


@dataclass(frozen=True)
class Mutant:
    """Occurrence ``occurrence`` of an operator in a file, at ``place``; ``source_digest`` is the file's."""

    file: str
    group: str
    operator: str
    occurrence: int
    place: Place
    source_digest: str

    @property
    def kind(self) -> str:
        """The operator without what it puts in: ``ReplaceBinaryOperator_Add`` of ``ReplaceBinaryOperator_Add_Sub``."""
        name = self.operator.rpartition("/")[2]
        return name.rpartition("_")[0] if name.count("_") > 1 else name

    @property
    def key(self) -> str:
        """The same as long as the file stays the same."""
        text = f"{self.file}\0{self.source_digest}\0{self.operator}\0{self.occurrence}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def source(self) -> str:
        """The module's source with the mutation in it."""
        mutated: str | None = mutate_code(_read(self.file), get_operator(self.operator)(), self.occurrence)
        assert mutated is not None, self
        return mutated


@dataclass
class Found:
    """The mutants of a module, and how many each rule left out."""

    mutants: list[Mutant]
    left_out: Counter[str]


def mutants_of(file: str, group: str) -> Found:
    """Every mutant of ``file`` outside of what rules leave out, in the order of the source."""
    source = _read(file)
    digest, spans, skipped = hashlib.sha256(source.encode()).hexdigest()[:16], left_out(file, source), Counter[str]()
    mutants = []
    for operator, occurrence, place in _positions(source):
        rule = "same" if operator.rpartition("/")[2] in SAME else rule_at(spans, place)
        if rule:
            skipped[rule] += 1
        else:
            mutants.append(Mutant(file, group, operator, occurrence, place, digest))
    return Found(sorted(mutants, key=lambda each: (each.place, each.operator, each.occurrence)), skipped)


def _positions(source: str) -> Iterator[tuple[str, int, Place]]:
    """(operator, occurrence, place) in the order in which cosmic-ray counts occurrences."""
    nodes = list(ast_nodes(get_ast(source)))
    for name in operator_names():
        if name.rpartition("/")[2] in WITH_ARGUMENTS:
            continue
        operator = get_operator(name)()
        places = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, place in enumerate(places):
            yield name, occurrence, tuple(place)


def few_a_place(mutants: Iterable[Mutant], count: int, seed: int) -> list[Mutant]:
    """At most ``count`` of one kind at one place, drawn: eleven replacements of one ``+`` are mostly type errors."""
    places: dict[tuple[str, str, Place], list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        places[mutant.file, mutant.kind, mutant.place].append(mutant)
    chosen = []
    for key, here in places.items():
        draw = random.Random(f"{seed} {key}")
        chosen += here if len(here) <= count else draw.sample(here, count)
    return chosen


def is_mutation(mutant: Mutant, mutated: str) -> bool:
    """Does it compile, to another program than the file's?"""
    try:
        return ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(_read(mutant.file)))
    except SyntaxError:
        return False


def difference(mutant: Mutant, mutated: str) -> list[str]:
    """The lines that differ, marked - and +."""
    before, after = _read(mutant.file).splitlines(), mutated.splitlines()
    lines = list(difflib.unified_diff(before, after, lineterm="", n=0))[2:]
    return [line for line in lines if line[:1] in "+-"]


def _read(file: str) -> str:
    return (ROOT / file).read_text()
