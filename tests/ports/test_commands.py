"""Whatever happens to a command from outside, from its first import on, ends in a line and an exit code."""

import contextlib
import errno
import io
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import typer
from rich.console import Console
from transformers.utils.logging import get_logger as transformers_logger

from ports import SCRIPTS, cli, commands, is_command
from ports.eagle3 import train as eagle3
from ports.errors import InputError

ROOT = Path(__file__).parents[2]


class Unread(io.StringIO):
    """A stream that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def raises(error, cause=None):
    def run():
        raise error from cause

    return run


def app_of(run):
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(run)
    return app


NO_ROOM = OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
ENDS = [
    (lambda: None, 0, ""),
    (lambda: 75, 75, ""),
    (lambda: print("a name that is no text: \udcff"), 0, ""),
    (raises(KeyError("x")), 2, "error: 'x'"),
    (raises(InputError("two\nlines", "a field", 1, 2)), 2, "error: two\\nlines: a field: found 1, expected 2"),
    (raises(KeyboardInterrupt()), 130, "interrupted"),
    (raises(ValueError("a library's"), KeyboardInterrupt()), 130, "interrupted"),
    (raises(InputError("a file", "a field", 1, 2), KeyboardInterrupt()), 130, "interrupted"),
    (raises(NO_ROOM), 2, "error: the system: found [Errno 28] No space left on device: 'metrics.jsonl', expected "),
    (lambda: print("unread", file=Unread()), 141, "nobody reads the output"),
    (lambda: Console(file=Unread()).print("unread"), 141, "nobody reads the output"),
]


@pytest.mark.parametrize(("run", "code", "said"), ENDS)
@pytest.mark.parametrize("form", [lambda run: run, app_of], ids=["plain", "typer"])
def test_how_a_command_ends(monkeypatch, capsys, form, run, code, said):
    """Typer and rich would make exit code 1 of an interrupt and of a broken pipe, which means something else here."""
    if form is app_of and code == 75:
        run = raises(typer.Exit(75))
    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setattr("ports.commands.to_nowhere", lambda stream: None)
    try:
        found = commands.exit_code(form(run), KeyError)
    except SystemExit as left:
        found = left.code
    assert found == code
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert last.startswith(said)
    assert bool(last) is bool(said)


def with_closed_output(main, words):
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    return main(words)


def test_a_run_whose_output_nobody_reads_is_not_lost(fork, flags, tmp_path):
    process = fork(with_closed_output, eagle3.main, flags())
    said = process.ended()
    assert (process.returncode, "Traceback" in said, "Exception" in said) == (0, False, False), said
    assert (tmp_path / "checkpoints" / "model0" / "model.safetensors").is_file()


def test_an_answer_that_nobody_reads(fork):
    process = fork(with_closed_output, cli.main, ["--help"])
    said = process.ended()
    assert (process.returncode, said.strip()) == (141, "nobody reads the output"), said


def test_an_interrupt_while_the_libraries_load(flags):
    """Pressed again where it is lost: python drops what is raised in a destructor, and libraries have some.

    Soon enough that they still load: a run that has begun would save and end with 75.
    """
    command = [sys.executable, "-m", "ports.eagle3.train", *flags(epoch=2000)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    loaded = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "libtorch" not in loaded.read_text():
        time.sleep(0.01)
    said = ""
    for _ in range(400):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            said = process.communicate(timeout=0.2)[1]
            break
    process.kill()
    assert process.returncode in (130, -signal.SIGINT), said
    assert said.strip().split("\n")[-1] == "interrupted"
    assert "Traceback" not in said


USE = "import transformers.audio_utils"
AFTER = "import sys, importlib.util as u; assert 'torchaudio' not in sys.modules; assert u.find_spec('torchaudio')"


def beside_torchaudio(folder, content, code):
    """Run ``code`` in an interpreter that has a torchaudio of that content."""
    (folder / "torchaudio").mkdir()
    (folder / "torchaudio" / "__init__.py").write_text(f"{content}\n")
    (folder / "torchaudio-9.9.0.dist-info").mkdir()
    (folder / "torchaudio-9.9.0.dist-info" / "METADATA").write_text("Name: torchaudio\nVersion: 9.9.0\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("code", "said"), [(f"import ports; {USE}; {AFTER}", ""), (USE, "undefined symbol")])
def test_transformers_imports_beside_a_broken_torchaudio_after_ports(tmp_path, code, said):
    """Its own import fails as that of another build does."""
    result = beside_torchaudio(tmp_path, "raise OSError('undefined symbol')", code)
    assert said in result.stderr
    assert (result.returncode == 0) is (said == ""), result.stderr


def speak(log):
    """As libraries do, in every way, and as this package."""
    commands.log_libraries(log)
    commands.hush_libraries()
    logging.getLogger("vllm.engine").warning("logged")
    transformers_logger("transformers.modeling").warning("of transformers")
    warnings.warn_explicit("warned of", FutureWarning, "torch/nn.py", 1)
    os.write(2, b"from below\n")
    warnings.warn_explicit("a server proposes nothing", UserWarning, commands.__file__, 1)
    print("answers")
    print("error: bad input", file=sys.stderr)
    return 0


def test_what_libraries_say_goes_to_a_file_and_not_over_what_is_shown(fork, tmp_path):
    process = fork(speak, tmp_path / "log.txt")
    assert process.ended().splitlines() == ["warning: a server proposes nothing", "answers", "error: bad input"]
    said = (tmp_path / "log.txt").read_text()
    assert all(what in said for what in ("logged", "of transformers", "warned of", "from below\n"))


KNOWN = "from transformers.utils import is_torchaudio_available as known; assert known()"


def test_a_torchaudio_that_works_is_left_to_transformers(tmp_path):
    result = beside_torchaudio(tmp_path, "__version__ = '9.9.0'", f"import ports, transformers.audio_utils; {KNOWN}")
    assert result.returncode == 0, result.stderr


def test_every_script_of_the_project_is_known():
    scripts = re.findall(r'^([\w-]+) = "[\w.]+:\w*main"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(scripts) == SCRIPTS
    assert not is_command("/usr/bin/pytest")
