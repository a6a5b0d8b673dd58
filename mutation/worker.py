"""One mutant in a process of its own: put it in place, import the ports, judge, say what came out."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mutation import hook
from mutation.reach import watch

ROOM = 8 << 30
"""Bytes that a mutant may take beyond what its process begins with."""

RESULT = "result.json"


def fork(folder: Path, work: Callable[[], dict[str, Any]]) -> int:
    """Run ``work`` in a child process, in ``folder``; its result lies in ``folder``'s result file. Returns the pid.

    The child leads a process group of its own, has its temporary files in ``folder``, and writes what it prints there.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        _settle_in(folder)
        (folder / "writing").write_text(json.dumps(work()))
        (folder / "writing").rename(folder / RESULT)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _settle_in(folder: Path) -> None:
    os.setpgid(0, 0)
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))


def judged(file: str, source: str, parts: dict[str, list[str]] | None, limits: dict[str, float]) -> dict[str, Any]:
    """What became of ``file``'s mutant ``source``; ``limits`` are seconds of processor time by case.

    A case that takes longer ends the process with SIGPROF.
    """
    hook.install(file, source)

    @contextmanager
    def limited(case: str, part: str) -> Any:
        if part == "run":
            signal.setitimer(signal.ITIMER_PROF, limits[case])
        yield

    signal.setitimer(signal.ITIMER_PROF, limits[IMPORT])
    try:
        from mutation import suite
    except Exception as error:
        return {"case": "", "check": IMPORT, "detail": str(error)[:200], "exception": type(error).__name__}
    killed = suite.judge(parts, limited)
    return {} if killed is None else asdict(killed)


IMPORT = "import"
"""The part before all cases."""


def baseline(keyword: str = "") -> dict[str, Any]:
    """The suite without a mutant: what it imports, and the lines that every part runs; it must pass."""
    from mutation import suite

    reached: dict[str, dict[str, dict[str, list[int]]]] = {}

    @contextmanager
    def watched(case: str, part: str) -> Any:
        with watch() as lines:
            yield
        reached.setdefault(case, {})[part] = {file: sorted(numbers) for file, numbers in lines.items()}

    killed = suite.judge(None, watched, keyword)
    if killed:
        raise RuntimeError(f"the suite fails without a mutant: {killed}")
    own = ("ports", "parity", "mutation", "__main__")
    return {"modules": [name for name in sys.modules if name.partition(".")[0] not in own], "reached": reached}


def timed(keyword: str = "") -> dict[str, Any]:
    """Seconds of processor time by case and part, with nothing in place, in a process as the mutants have it."""
    from mutation import suite

    watch = suite.Stopwatch()
    killed = suite.judge(None, watch, keyword)
    if killed:
        raise RuntimeError(f"the suite fails without a mutant: {killed}")
    return {"seconds": watch.seconds}
