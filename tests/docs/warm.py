"""Commands without the seconds that imports take: each is a fork of one process that has imported everything.

``python warm.py SOCKET`` serves until its standard input ends. The programs of :func:`write_clients` hand it their
words, environment, directory and files, and exit as the fork did.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

PROGRAMS = ("python", "pytest", "parity")
IMPORTED = ("parity.cli", "parity.prototypes.command", "ports.hass.train", "parity.fixtures.samples", "pytest")
MOST = 1 << 20
CLIENT = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(line, [len(request).to_bytes(4, "big") + request], [0, 1, 2])
    sys.exit(int(line.makefile().read() or 1))
"""


def write_clients(folder: Path, address: str) -> None:
    """The programs that ask the server at ``address``."""
    folder.mkdir()
    for program in PROGRAMS:
        file = folder / program
        file.write_text(CLIENT.format(python=sys.executable, address=address))
        file.chmod(0o755)


def serve(address: str) -> None:
    """Import, announce it by a line, and answer one command after the other."""
    for module in IMPORTED:
        import_module(module)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([door, sys.stdin], [], [])[0]:
            line, _ = door.accept()
            with line:
                code = answer(line)
                with contextlib.suppress(BrokenPipeError):
                    line.sendall(str(code).encode())


def answer(line: socket.socket) -> int:
    """The exit code of one command, run in a fork."""
    message, files, _, _ = socket.recv_fds(line, MOST, 3)
    size = int.from_bytes(message[:4], "big")
    while len(message) < size + 4:
        message += line.recv(MOST)
    child = os.fork()
    if child == 0:
        become(files, *json.loads(message[4:]))
    for file in files:
        os.close(file)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def become(files: list[int], words: list[str], directory: str, environment: dict[str, str]) -> None:
    """This process from now on is that command; does not return."""
    code: Any = 1
    try:
        for place, file in enumerate(files):
            os.dup2(file, place)
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        run(words)
        code = 0
    except SystemExit as left:
        code = left.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def run(words: list[str]) -> None:
    """The program that the first word names."""
    program, *rest = sys.argv = words
    if program == "parity":
        import_module("parity.cli").main()
    elif program == "pytest":
        sys.exit(import_module("pytest").main(rest))
    else:
        sys.path[0] = os.getcwd()
        sys.argv = rest[rest[0] == "-m" :]
        start: Any = runpy.run_module if rest[0] == "-m" else runpy.run_path
        start(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
