"""``run.py`` makes one environment at a time, whoever else starts it, and never takes a broken one for a whole one."""

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
while [ -e busy ]; do sleep 0.02; done
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
    """A folder with ``run.py`` in it; its environment's python only writes down when it was asked what.

    Whatever that began goes on while there is the file ``busy``.
    """

    def __init__(self, folder):
        self.folder, self.busy = folder, folder / "busy"
        shutil.copy(ROOT / "run.py", folder)
        (folder / "driver.py").write_text(DRIVER)
        self.declare("one")

    def declare(self, content):
        """Change what is to be installed."""
        (self.folder / "pyproject.toml").write_text(content)

    def start(self, **environment):
        """What it says goes to a file of its number."""
        command, environment = [sys.executable, "driver.py"], {**os.environ, **environment}
        with (self.folder / "saying").open("wb") as out:
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=out, stderr=out)
        (self.folder / "saying").rename(self.folder / f"said_{process.pid}")
        return process

    def said(self, process, code=0):
        assert process.wait(timeout=60) == code
        return (self.folder / f"said_{process.pid}").read_text()

    def log(self):
        file = self.folder / "log"
        return file.read_text().splitlines() if file.exists() else []

    def begun(self, what):
        """Where in the log something began."""
        return [number for number, line in enumerate(self.log()) if line.startswith(f"begin {what}")]

    def ended(self, what):
        return [number for number, line in enumerate(self.log()) if line.startswith(f"end {what}")]

    def wait_for(self, what, times=1):
        self.until(lambda: len(self.begun(what)) >= times)

    def until_it_waits(self, process):
        """For another one, as it says."""
        self.until(lambda: "waiting" in (self.folder / f"said_{process.pid}").read_text())

    def until(self, happened):
        end = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_started_twice_at_a_time_it_installs_once(project):
    project.busy.touch()
    first = project.start()
    project.wait_for(INSTALL)
    second = project.start()
    project.until_it_waits(second)
    project.busy.unlink()
    assert project.said(second).count("waiting") == 1
    assert "waiting" not in project.said(first)
    assert (len(project.begun(INSTALL)), len(project.begun(JOB))) == (1, 2)


def test_jobs_of_one_environment_run_side_by_side(project):
    project.said(project.start())
    project.busy.touch()
    both = project.start(), project.start()
    project.wait_for(JOB, 3)
    assert len(project.ended(JOB)) == 1
    project.busy.unlink()
    assert [project.said(process) for process in both] == ["", ""]


def test_an_environment_in_use_is_not_replaced(project):
    project.said(project.start())
    project.busy.touch()
    first = project.start()
    project.wait_for(JOB, 2)
    project.declare("two")
    second = project.start()
    project.until_it_waits(second)
    project.busy.unlink()
    project.said(second)
    project.said(first)
    assert project.ended(JOB)[1] < project.begun(INSTALL)[1]


def test_a_killed_installation_is_made_anew_once_its_pip_is_gone(project):
    project.busy.touch()
    first = project.start()
    project.wait_for(INSTALL)
    first.kill()
    second = project.start()
    project.until_it_waits(second)
    project.busy.unlink()
    project.said(second)
    first.wait()
    assert project.ended(INSTALL)[0] < project.begun(INSTALL)[1]
    assert len(project.begun(JOB)) == 1


def test_an_interrupt_is_the_jobs_to_answer(project):
    project.said(project.start())
    project.busy.touch()
    process = project.start()
    project.wait_for(JOB, 2)
    process.send_signal(signal.SIGINT)
    project.busy.unlink()
    assert "Traceback" not in project.said(process)
    assert len(project.ended(JOB)) == 2


def test_an_installation_that_fails_is_a_line(project):
    assert project.said(project.start(FAILS="1"), 1).endswith(
        "pip ended with exit code 7; the same command begins anew\n"
    )
    project.said(project.start())
    assert len(project.begun(INSTALL)) == 2


def test_an_environment_half_removed_is_not_the_one_it_was(project):
    project.said(project.start())
    project.declare("two")
    project.said(project.start(DIES="1"), -signal.SIGKILL)
    project.declare("one")
    project.said(project.start())
    assert len(project.begun(INSTALL)) == 2


def test_torchaudio_is_taken_out(project):
    project.said(project.start())
    (removed,) = project.begun("-m pip --disable-pip-version-check uninstall --quiet --yes torchaudio")
    assert project.ended(INSTALL)[0] < removed < project.begun(JOB)[0]
