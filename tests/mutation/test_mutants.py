"""What cosmic-ray makes of a module, less what rules leave out."""

from __future__ import annotations

import pytest

from mutation.mutants import difference, few_a_place, is_mutation, mutants_of
from mutation.scope import ROOT

FILE = "ports/training/data/noise.py"


@pytest.fixture(scope="module")
def found():
    return mutants_of(FILE, "data")


def test_mutants_differ_from_the_file_in_one_place(found):
    for mutant in found.mutants[:30]:
        source = mutant.source()
        if is_mutation(mutant, source):
            change = difference(mutant, source)
            assert [line[0] for line in change] == ["-", "+"], change
            assert "0.5" in change[0] or "STD" in change[0] or "LENGTH" in change[0] or "features" in change[0]


def test_rules_take_away_what_they_name(found):
    batches = mutants_of("ports/training/data/batches.py", "data")
    assert batches.left_out["annotation"] > 0
    assert all(mutant.place[0] != 36 or mutant.operator.endswith("RemoveDecorator") for mutant in batches.mutants)


def test_few_are_made_at_a_place_and_the_same_ones_again(found):
    few = few_a_place(found.mutants, 2, seed=0)
    assert few == few_a_place(found.mutants, 2, seed=0)
    assert few != few_a_place(found.mutants, 2, seed=1)
    places = [(mutant.kind, mutant.place) for mutant in few]
    assert max(places.count(place) for place in places) == 2
    assert {(mutant.kind, mutant.place) for mutant in found.mutants} == set(places)


def test_keys_tell_mutants_apart(found):
    assert len({mutant.key for mutant in found.mutants}) == len(found.mutants)


def test_what_does_not_compile_or_is_the_same_is_no_mutation(found):
    mutant = found.mutants[0]
    assert not is_mutation(mutant, "def f(:")
    assert not is_mutation(mutant, (ROOT / FILE).read_text() + "\n# a remark\n")
