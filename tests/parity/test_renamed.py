"""Names of the version before: each does what the new one does, and says that in a line."""

from dataclasses import replace

import pytest

import parity
from parity import Fused, KnownDifference, NameMap, Pair, Replicated, Side, Tolerance, renamed
from parity.errors import InputError
from parity.tolerances import Kind, checked

SIDE = Side(lambda: None, name="port")
PAIR = Pair("pair", SIDE, SIDE)
LOOSE = Tolerance(Kind.RMS, 0.1, "loose")

OLD = {
    **{
        name: (lambda name=name: getattr(parity, name), lambda found, new=new: found is getattr(parity, new))
        for name, new in renamed.NAMES.items()
    },
    "joined": (lambda: NameMap(joined=[Fused("a", ("b",))]), lambda names: set(names.fused) == {"a"}),
    "copied": (lambda: NameMap(copied=[Replicated("a", ("b",))]), lambda names: names.copies("a") == ["b"]),
    "switch": (lambda: KnownDifference("id", "text", switch=id), lambda known: known.patch is id),
    "causes": (lambda: replace(PAIR, causes=(1,)), lambda pair: pair.known_differences == (1,)),
    "paths": (lambda: PAIR.chosen(["paths"]), lambda chosen: chosen == ("cross_step_grad",)),
    "path": (lambda: checked({"path": LOOSE}), lambda own: own == {"cross_step_grad": LOOSE}),
    "after": (lambda: checked({"after": LOOSE}), lambda own: own == {"after_step1": LOOSE}),
}


@pytest.mark.parametrize("name", OLD)
def test_an_old_name_is_understood_with_a_line_that_has_the_new_one(name):
    make, is_new = OLD[name]
    with pytest.warns(FutureWarning, match=rf"^{name} is \w+ now; the old name goes with the next version$"):
        found = make()
    assert is_new(found)


def test_what_is_gone_says_what_does_as_much():
    with pytest.raises(
        InputError, match=r"^parity: single_step: found a name of the version before, expected compare_s"
    ):
        parity.single_step  # noqa: B018


def test_new_names_are_no_news(recwarn):
    assert [getattr(parity, name) for name in parity.__all__]
    assert not [one for one in recwarn if one.category is FutureWarning]
