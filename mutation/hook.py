"""Import one module from another source than its file's.

Only imports of this process see it. A process that it starts imports the files as they are, which can make a mutant
survive and never get it killed; the suite starts none.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

from mutation.scope import ROOT


def module_name(file: str) -> str:
    """``ports/training/loop.py`` -> ``ports.training.loop``."""
    return file.removesuffix(".py").replace("/", ".")


class MutatedModule(MetaPathFinder, Loader):
    """Finds and loads the one module; every other import goes on as ever."""

    def __init__(self, file: str, source: str) -> None:
        self.path, self.name, self.source = ROOT / file, module_name(file), source

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = spec_from_loader(fullname, self, origin=str(self.path))
        assert spec is not None
        spec.has_location = True
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def install(file: str, source: str) -> None:
    """From now on ``file``'s module is imported from ``source``.

    Raises:
        RuntimeError: it was imported before, so that the mutant would never run.
    """
    if module_name(file) in sys.modules:
        raise RuntimeError(f"{module_name(file)} was imported before its mutant")
    sys.meta_path.insert(0, MutatedModule(file, source))
