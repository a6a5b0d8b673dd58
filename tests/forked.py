"""Commands without the seconds that imports take: each is a fork of one process that has imported everything.

:class:`Forked` is a function in a process of its own. The programs of :func:`write_clients` are for whoever starts
commands himself (a script, a launcher, a page of the documentation): each hands its words, environment, directory and
files to :func:`serve`, itself a :class:`Forked`, and ends as the fork did.
"""

import contextlib
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import sys
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path
from unittest import mock

from tests.processes import family, members

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # what is forked may have one thread: a fork inherits locks,
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")  # and not the threads that would open them
with mock.patch.dict(os.environ, PYTHONWARNINGS="ignore:resource_tracker"):  # what tests kill leaves semaphores behind
    resource_tracker.ensure_running()
FORKS = multiprocessing.get_context("forkserver")
PROGRAMS = {
    "python": "",
    "pytest": "pytest:main",
    "parity": "parity.cli:main",
    "accelerate": "accelerate.commands.accelerate_cli:main",
}
"""Those that :func:`serve` knows, and what runs when one is called; ``python`` runs a file or a module."""

FORKS.set_forkserver_preload(
    [
        *("ports.eagle3.train", "ports.hass.train", "ports.generate.__main__", "ports.evaluate.measure"),
        *("parity.cli", "parity.prototypes.command", "parity.fixtures.samples", "pytest", "torch.distributed.run"),
        "accelerate.commands.accelerate_cli",
    ]
)
MOST = 1 << 20
CLIENT = """\
#!{python} -IS
import contextlib, json, os, signal, socket, sys
def forward(number, frame):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(line, [len(request).to_bytes(4, "big") + request], [0, 1, 2])
    answers = line.makefile()
    pid = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    code = int(answers.readline() or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class Forked:
    """``target(*arguments)`` in a process and session of its own; what it says is kept in a file of ``folder``.

    ``environment`` holds further variables.
    """

    def __init__(self, folder, target, *arguments, **environment):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"said_{len(list(folder.glob('said_*')))}"
        self.file.touch()
        self.process = FORKS.Process(target=_call, args=(str(self.file), environment, target, arguments))
        self.process.start()
        self.pid = self.process.pid

    @property
    def said(self):
        return self.file.read_text()

    @property
    def returncode(self):
        """None while it runs, and minus the signal that ended it."""
        return self.process.exitcode

    def kill(self):
        self.process.kill()
        self.process.join()

    def kill_all(self):
        """It, all below it, and what it left behind in its session."""
        for pid in {*family(self.pid), *members(self.pid)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.join()

    def ended(self, seconds=240):
        """What it said, once it has ended."""
        self.process.join(seconds)
        assert self.returncode is not None, self.said
        return self.said


def _call(file, environment, target, arguments):
    os.setsid()
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.update(environment)
    tasks = Path(f"/proc/{os.getppid()}/task")
    names = [(task / "comm").read_text().strip() for task in tasks.glob("*")]
    names = [name for name in names if name != "jemalloc_bg_thd"]  # allocates nothing, locks nothing across forks
    if len(names) > 1:
        sys.exit(f"who is forked must have one thread, has {names}")
    sys.exit(target(*arguments))


def write_clients(folder, address):
    """The programs that ask the server at ``address``."""
    folder.mkdir()
    for program in PROGRAMS:
        file = folder / program
        file.write_text(CLIENT.format(python=sys.executable, address=address))
        file.chmod(0o755)


def serve(folder, address):
    """Answer every client with a fork, and for ever."""
    sys.executable = os.environ["PYTHON_EXEC"] = f"{folder}/python"  # launchers start others with these
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen()
        print("ready", flush=True)
        while True:
            line, _ = door.accept()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if os.fork() == 0:
                door.close()
                answer(line)
                os._exit(0)
            line.close()


def answer(line):
    """Run one command in a fork; it is killed if its client is."""
    message, files, _, _ = socket.recv_fds(line, MOST, 3)
    size = int.from_bytes(message[:4], "big")
    while len(message) < size + 4:
        message += line.recv(MOST)
    child = os.fork()
    if child == 0:
        line.close()
        become(files, *json.loads(message[4:]))
    for file in files:
        os.close(file)
    with contextlib.suppress(BrokenPipeError):
        line.sendall(f"{child}\n".encode())
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if select.select([line], [], [], 0.01)[0]:
            os.kill(child, signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError):
        line.sendall(f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())


def become(files, words, directory, environment):
    """This process from now on is that command; does not return."""
    code = 1
    try:
        os.setsid()
        for place, file in enumerate(files):
            os.dup2(file, place)
            os.close(file)
        os.chdir(directory)
        launchers = os.environ["PYTHON_EXEC"]
        os.environ.clear()
        os.environ.update({**environment, "PYTHON_EXEC": launchers})
        code = run(words)
    except SystemExit as left:
        code = left.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def run(words):
    """The program that the first word names."""
    program, *rest = sys.argv = words
    if program != "python":
        module, _, name = PROGRAMS[program].partition(":")
        return getattr(import_module(module), name)()
    rest = rest[rest[0] == "-u" :]
    sys.path[:1] = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = rest[rest[0] == "-m" :]
    start = runpy.run_module if rest[0] == "-m" else runpy.run_path
    start(sys.argv[0], run_name="__main__", **({"alter_sys": True} if rest[0] == "-m" else {}))
    return 0
