"""``run.py`` makes one environment at a time, whoever else starts it, and never takes a broken one for a whole one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """\
#!/bin/sh
echo "begin $*" >> log
[ -z "$FAILS" ] || exit 7
sleep 1
echo "end $*" >> log
"""
DRIVER = f"""
import os, pathlib, shutil, signal, sys
import run

def create(folder, with_pip, clear):
    if "DIES" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    run.PYTHON.parent.mkdir(parents=True)
    run.PYTHON.write_text({PYTHON!r})
    run.PYTHON.chmod(0o755)

run.venv.create = create
sys.exit(run.main(["docs"]))
"""
INSTALL, JOB = "-m pip --disable-pip-version-check install", "-m mkdocs"


class Project:
    """A folder with ``run.py`` in it; its environment's python only writes down when it was asked what."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(ROOT / "run.py", folder)
        (folder / "driver.py").write_text(DRIVER)
        self.declare("one")

    def declare(self, content: str) -> None:
        """Change what is to be installed."""
        (self.folder / "pyproject.toml").write_text(content)

    def start(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "driver.py"],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def said(self, process: subprocess.Popen[str], code: int = 0) -> str:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == code
        return said

    def log(self) -> list[str]:
        file = self.folder / "log"
        return file.read_text().splitlines() if file.exists() else []

    def begun(self, what: str) -> list[int]:
        """Where in the log something began."""
        return [number for number, line in enumerate(self.log()) if line.startswith(f"begin {what}")]

    def ended(self, what: str) -> list[int]:
        return [number for number, line in enumerate(self.log()) if line.startswith(f"end {what}")]

    def wait_for(self, what: str) -> None:
        for _ in range(600):
            if self.begun(what):
                return
            time.sleep(0.05)
        pytest.fail(f"{what} never began")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_started_twice_at_a_time_it_installs_once(project: Project) -> None:
    first = project.start()
    project.wait_for(INSTALL)
    said = project.said(project.start())
    assert said.count("waiting") == 1
    assert "waiting" not in project.said(first)
    assert (len(project.begun(INSTALL)), len(project.begun(JOB))) == (1, 2)


def test_jobs_of_one_environment_run_side_by_side(project: Project) -> None:
    project.said(project.start())
    both = project.start(), project.start()
    assert [project.said(process) for process in both] == ["", ""]
    assert project.begun(JOB)[2] < project.ended(JOB)[1]


def test_an_environment_in_use_is_not_replaced(project: Project) -> None:
    project.said(project.start())
    first = project.start()
    while len(project.begun(JOB)) < 2:
        time.sleep(0.05)
    project.declare("two")
    assert "waiting" in project.said(project.start())
    project.said(first)
    assert project.ended(JOB)[1] < project.begun(INSTALL)[1]


def test_a_killed_installation_is_made_anew_once_its_pip_is_gone(project: Project) -> None:
    first = project.start()
    project.wait_for(INSTALL)
    first.kill()
    project.said(project.start())
    first.communicate()
    assert project.ended(INSTALL)[0] < project.begun(INSTALL)[1]
    assert len(project.begun(JOB)) == 1


def test_an_interrupt_is_the_jobs_to_answer(project: Project) -> None:
    process = project.start()
    project.wait_for(JOB)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in project.said(process)
    assert len(project.ended(JOB)) == 1


def test_an_installation_that_fails_is_a_line(project: Project) -> None:
    assert project.said(project.start(FAILS="1"), 1).endswith(
        "pip ended with exit code 7; the same command begins anew\n"
    )
    project.said(project.start())
    assert len(project.begun(INSTALL)) == 2


def test_an_environment_half_removed_is_not_the_one_it_was(project: Project) -> None:
    project.said(project.start())
    project.declare("two")
    project.said(project.start(DIES="1"), -signal.SIGKILL)
    project.declare("one")
    project.said(project.start())
    assert len(project.begun(INSTALL)) == 2


def test_torchaudio_is_taken_out(project: Project) -> None:
    project.said(project.start())
    (removed,) = project.begun("-m pip --disable-pip-version-check uninstall --quiet --yes torchaudio")
    assert project.ended(INSTALL)[0] < removed < project.begun(JOB)[0]
