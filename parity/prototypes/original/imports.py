"""Import a prototype's training script, with a ``print`` of our own and perhaps another model."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from parity.errors import InputError
from parity.prototypes.original.checkout import Prototype


def redirect_model(prototype: Prototype, name: str) -> str:
    """Let the script's ``Model`` and ``EConfig`` come from another module."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise InputError(name, "module", str(error), "a module that can be imported") from error
    for needed in ("Model", "EConfig"):
        if not hasattr(module, needed):
            raise InputError(name, needed, "missing", f"one: the module stands in for {prototype.model}")
    sys.modules[prototype.model] = sys.modules["model.configs"] = module
    return f"{prototype.model} and model.configs = {name}"


def import_with_print(prototype: Prototype, root: Path, record: Callable[..., None]) -> ModuleType:
    """Import the script with a ``print`` of our own among its globals, so that its lines can be kept."""
    spec = importlib.util.spec_from_file_location(prototype.script, prototype.script_path(root))
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    script.__dict__["print"] = record
    sys.modules[prototype.script] = script
    spec.loader.exec_module(script)
    return script
