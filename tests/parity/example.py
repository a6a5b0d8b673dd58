"""The example's modules, to plant faults in."""

from pathlib import Path

from parity import Side
from parity.pair import module_of

FILE = Path(__file__).resolve().parents[2] / "examples" / "compare_modules.py"


def load():
    """``examples/compare_modules.py`` as a module."""
    return module_of(str(FILE))


def side_with(plant, **changes):
    """The hand-written layer with a fault planted in every build of it."""

    def build():
        block = load().Block(load().CONFIG)
        plant(block)
        return block

    return Side(build, name="hand-written", **changes)
