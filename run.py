#!/usr/bin/env python3
"""Set up a private environment beside this file and run one thing in it.

    python3 run.py parity   the parity run of prototypes against ports; writes report.html
    python3 run.py test     the tests, with coverage
    python3 run.py lint     ruff and mypy
    python3 run.py bench    the benchmarks
    python3 run.py docs     the documentation, in site/; a broken link is an error

Words after the name are passed on. Needs Python 3.10 or newer and a package index; the first run installs about 1.5 GB.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = ENVIRONMENT / "installed.txt"
WORKERS = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]
JOBS = {
    "parity": [["-m", "parity", "run", "--report", "report.html", "--json", "report.json"]],
    "test": [["-m", "pytest", *WORKERS, "--cov", "--cov-report=term", "--cov-fail-under=90"]],
    "lint": [["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."], ["-m", "mypy"]],
    "bench": [
        ["-m", "pytest", "benchmarks", "-p", "no:xdist", "--benchmark-json=bench.json"],
        ["-m", "parity", "plot", "bench.json"],
    ],
    "docs": [["-m", "mkdocs", "build", "--strict"]],
}


def main(words: list[str]) -> int:
    """Run the job that ``words`` name; its exit code is ours."""
    if not words or words[0] not in JOBS:
        print(__doc__)
        return 2
    install()
    for number, job in enumerate(JOBS[words[0]]):
        passed_on = words[1:] if number == 0 else []
        code = subprocess.run([str(PYTHON), *job, *passed_on], cwd=ROOT, env=environment()).returncode
        if code:
            return code
    return 0


def install() -> None:
    """Make the environment and install the project into it, unless that was done for this very pyproject.toml."""
    fingerprint = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == fingerprint:
        return
    print(f"installing into {ENVIRONMENT.name}/ with Python {sys.version.split()[0]}", flush=True)
    make_environment()
    pip("install", "--quiet", "--editable", ".[dev]")
    STAMP.write_text(fingerprint)


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
    subprocess.run([str(PYTHON), "-m", "pip", "--disable-pip-version-check", *words], cwd=ROOT, check=True)


def environment() -> dict[str, str]:
    """One thread per process: numbers that repeat, and processes that do not fight over cores."""
    return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036  (this file runs before anything is installed)
        raise SystemExit(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    sys.exit(main(sys.argv[1:]))
