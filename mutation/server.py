"""Keeps the heavy libraries imported, the ports never, and hands every mutant to a fork of itself."""

from __future__ import annotations

import ast
import importlib
import json
import os
import runpy
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mutation import outcome, worker
from mutation.mutants import Mutant, difference, is_mutation
from mutation.reach import statement_lines
from mutation.scope import ROOT

SLACK, LEAST = 8, 20
"""A mutant may take this many times a case's time, and this many seconds in any case."""

TRAINING = "run"
"""The part of a case that trains the port."""

ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
"""Set before a library is imported: a fork has no threads but its own, and a mutant asks nobody."""

GUARD = ROOT / "ports" / "_torchaudio.py"
"""Run as a file before transformers is imported: the package it lies in must not be."""

STANDSTILL = 300
"""Seconds on the clock after which a mutant that takes no processor time counts as hanging."""


class Server:
    """``reached``: case -> part -> file -> lines; ``seconds``: case -> part. Both without a mutant."""

    def __init__(self, keyword: str = "") -> None:
        os.environ.update(ENVIRONMENT)
        self.folder = Path(tempfile.mkdtemp(prefix="mutation-"))
        first = self._wait_for("baseline", lambda: worker.baseline(keyword))
        self.reached: dict[str, dict[str, dict[str, list[int]]]] = first["reached"]
        _import_all(first["modules"])
        self.seconds: dict[str, dict[str, float]] = self._wait_for("timed", lambda: worker.timed(keyword))["seconds"]
        self.trees: dict[str, ast.Module] = {}

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def limits(self) -> dict[str, float]:
        """Seconds of processor time by case."""
        cases = {case: max(LEAST, SLACK * sum(parts.values())) for case, parts in self.seconds.items()}
        return {worker.IMPORT: float(LEAST), **cases}

    def judge(self, mutants: Iterable[Mutant], jobs: int) -> Iterator[dict[str, Any]]:
        """One record a mutant, as they end."""
        waiting, running = iter(mutants), dict[int, outcome.Running]()
        while True:
            while len(running) < jobs and (mutant := next(waiting, None)) is not None:
                record = self._start(mutant, running)
                if record is not None:
                    yield record
            if not running:
                return
            yield from self._collect(running)

    def parts(self, mutant: Mutant) -> dict[str, list[str]]:
        """Case -> parts that the mutant can change; the case with most checks first, then the quickest.

        Those that run its statement; where training a case does, every check of the case looks at what came out.
        """
        tree = self.trees.setdefault(mutant.file, ast.parse((ROOT / mutant.file).read_text()))
        lines = statement_lines(tree, mutant.place[0])
        parts = {
            case: [part for part, ran in here.items() if lines is None or lines & set(ran.get(mutant.file, ()))]
            for case, here in self.reached.items()
        }
        order = sorted((case for case in parts if parts[case]), key=self._worth)
        return {case: list(self.reached[case]) if TRAINING in parts[case] else parts[case] for case in order}

    def _worth(self, case: str) -> tuple[int, float]:
        return -len(self.reached[case]), sum(self.seconds[case].values())

    def _start(self, mutant: Mutant, running: dict[int, outcome.Running]) -> dict[str, Any] | None:
        """Start judging, or say at once what is known."""
        source = mutant.source()
        change = difference(mutant, source)
        if not is_mutation(mutant, source):
            return outcome.record(mutant, change, "no mutation", {})
        parts = self.parts(mutant)
        if not parts:
            return outcome.record(mutant, change, "survived", {"reached": False})
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        pid = worker.fork(folder, lambda: worker.judged(mutant.file, source, parts, self.limits))
        running[pid] = outcome.Running(mutant, change, folder)
        return None

    def _collect(self, running: dict[int, outcome.Running]) -> Iterator[dict[str, Any]]:
        """The records of those that ended, after a moment."""
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in running:
            yield outcome.ended(running.pop(pid), status, pid)
            return
        time.sleep(0.02)
        for pid, one in list(running.items()):
            if time.monotonic() - one.started > STANDSTILL:
                outcome.kill_group(pid)

    def _wait_for(self, name: str, work: Any) -> dict[str, Any]:
        folder = self.folder / name
        folder.mkdir()
        os.waitpid(worker.fork(folder, work), 0)
        if not (folder / worker.RESULT).exists():
            raise RuntimeError((folder / "output").read_text()[-3000:])
        result: dict[str, Any] = json.loads((folder / worker.RESULT).read_text())
        shutil.rmtree(folder)
        return result


def _import_all(modules: list[str]) -> None:
    """Everything the suite imported but the project's own; a fork must not find other threads' locks taken."""
    import torch

    torch.set_num_threads(1)
    runpy.run_path(str(GUARD))["skip_torchaudio"]()
    for name in modules:
        with suppress(ImportError, AttributeError, KeyError, RuntimeError):
            importlib.import_module(name)
    if threading.active_count() > 1:
        raise RuntimeError(f"cannot fork beside other threads: {threading.enumerate()}")
