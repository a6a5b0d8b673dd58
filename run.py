#!/usr/bin/env python3
"""Set up a private environment beside this file and run one thing in it.

    python3 run.py parity   the parity run of prototypes against ports; writes report.html
    python3 run.py test     the tests
    python3 run.py lint     ruff and mypy
    python3 run.py bench    the benchmarks; --benchmark-compare --benchmark-compare-fail=min:10% fails what got slower
    python3 run.py docs     the documentation, in site/; a broken link is an error

Words after the name are passed on. Needs Python 3.10 or newer and a package index; the first run installs about 1.5 GB.
Started several times at a time, one installs and the others wait; an installation that was interrupted is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = ENVIRONMENT / "installed.txt"
LOCK = ROOT / ".venv.lock"
WORKERS = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "worksteal"]
JOBS = {
    "parity": [["-m", "parity", "run", "--report", "report.html", "--json", "report.json"]],
    "test": [["-m", "pytest", *WORKERS]],
    "lint": [["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."], ["-m", "mypy"]],
    "bench": [
        ["-m", "pytest", "benchmarks", "-p", "no:xdist", "--benchmark-json=bench.json"],
        ["-m", "benchmarks.tables", "bench.json"],
    ],
    "docs": [["-m", "mkdocs", "build", "--strict"]],
}


def main(words: list[str]) -> int:
    """Run the job that ``words`` name; its exit code is ours."""
    if not words or words[0] not in JOBS:
        print(__doc__)
        return 2
    with LOCK.open("a") as lock:
        os.set_inheritable(lock.fileno(), True)  # what we start may outlive us: the lock is held until it ends too
        hold(lock, alone=False)
        if not installed():
            hold(lock, alone=True)
            if not installed():
                install()
            hold(lock, alone=False)
        return run(words)


def run(words: list[str]) -> int:
    """Run the steps of a job until one fails; words go to the first."""
    for number, job in enumerate(JOBS[words[0]]):
        passed_on = words[1:] if number == 0 else []
        command = [str(PYTHON), *job, *passed_on]
        if code := wait_for(subprocess.Popen(command, cwd=ROOT, env=environment(), close_fds=False)):
            return code
    return 0


def wait_for(process: subprocess.Popen[bytes]) -> int:
    """Its exit code; Ctrl-C reaches it too, and is its to answer."""
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            return process.wait()


def hold(lock: TextIO, alone: bool) -> None:
    """Wait until nobody else uses the environment, or only until nobody else makes it.

    Windows has no shared locks: there the one who installed keeps the lock until it ends.
    """
    said = False
    while not taken(lock, alone):
        if not said:
            print(f"waiting for another run.py to be done with {ENVIRONMENT.name}/", flush=True)
        said = True
        time.sleep(0.2)


def taken(lock: TextIO, alone: bool) -> bool:
    """Take the lock, if that is possible at once."""
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_NB | (fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        elif alone:
            lock.seek(0)
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):  # the second is Windows'
        return False
    return True


def fingerprint() -> str:
    """Of what an environment is made from."""
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()


def installed() -> bool:
    """Was the environment made to the end, and for this very pyproject.toml?"""
    return STAMP.exists() and STAMP.read_text() == fingerprint()


def install() -> None:
    """Make the environment and install the project into it.

    Without torchaudio, which Speculators requires and nothing here uses: beside a CPU build of torch its import fails,
    and transformers imports it wherever it is found.
    """
    made_from = fingerprint()
    print(f"installing into {ENVIRONMENT.name}/ with Python {sys.version.split()[0]}", flush=True)
    STAMP.unlink(missing_ok=True)
    make_environment()
    pip("install", "--quiet", "--editable", ".[dev]")
    pip("uninstall", "--quiet", "--yes", "torchaudio")
    STAMP.write_text(made_from)


def make_environment() -> None:
    """A fresh virtual environment; says what to install where Python was shipped without that part."""
    try:
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise SystemExit(
            f"cannot make a virtual environment: {error}\non Debian and Ubuntu: apt install python3-venv"
        ) from error


def pip(*words: str) -> None:
    """Run pip in the environment, showing the command."""
    print("+ pip", *words, flush=True)
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *words]
    if code := wait_for(subprocess.Popen(command, cwd=ROOT, close_fds=False)):
        raise SystemExit(f"pip ended with exit code {code}; the same command begins anew")


def environment() -> dict[str, str]:
    """One thread per process: numbers that repeat, and processes that do not fight over cores."""
    return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036  (this file runs before anything is installed)
        raise SystemExit(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    sys.exit(main(sys.argv[1:]))
