"""One module comes from another source; the others do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mutation import hook

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from mutation import hook
from mutation.scope import ROOT
file = "ports/training/alignment.py"
hook.install(file, (ROOT / file).read_text() + "\\nMARK = 1\\n")
import ports.training.alignment as mutated, ports.errors as other
print(mutated.MARK, mutated.__file__ == str(ROOT / file), hasattr(other, "MARK"), mutated.Alignment("chain").value)
"""


def test_the_hook_mutates_its_module_alone():
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(root=str(ROOT))], capture_output=True, text=True)
    assert done.stdout.split() == ["1", "True", "False", "chain"], done.stderr


def test_a_module_that_was_imported_cannot_be_mutated():
    import ports.errors  # noqa: F401

    with pytest.raises(RuntimeError, match=r"ports\.errors was imported before its mutant"):
        hook.install("ports/errors.py", "")


def test_module_names():
    assert hook.module_name("ports/training/loop.py") == "ports.training.loop"
