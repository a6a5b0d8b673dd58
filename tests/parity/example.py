"""The example's modules, to plant faults in."""

import importlib.util
import sys
from pathlib import Path

from parity import Side

FILE = Path(__file__).resolve().parents[2] / "examples" / "compare_modules.py"


def load():
    """``examples/compare_modules.py`` as a module."""
    if "compare_modules" not in sys.modules:
        spec = importlib.util.spec_from_file_location("compare_modules", FILE)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["compare_modules"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["compare_modules"]


def side_with(plant, **changes):
    """The hand-written layer with a fault planted in every build of it."""

    def build():
        block = load().Block(load().CONFIG)
        plant(block)
        return block

    return Side(build, name="hand-written", **changes)
