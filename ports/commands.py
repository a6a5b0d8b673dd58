"""What the commands share: they speak for themselves, and end in a line and an exit code instead of a traceback."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import typer
from loguru import logger

from ports.errors import InputError

BAD_INPUT, INTERRUPTED, UNREAD = 2, 130, 141
"""Exit codes; the last two are a shell's for Ctrl-C and for a reader of the output that is gone."""


def run_app(app: typer.Typer, *refusals: type[Exception]) -> None:
    """Run a command line as :func:`exit_code` says; does not return."""
    hush_libraries()
    sys.exit(exit_code(app, *refusals))


def exit_code(run: Callable[[], Any], *refusals: type[Exception]) -> int:
    """Run a command; what it returns is its exit code.

    Bad input (:class:`~ports.errors.InputError` and ``refusals``) and a disk or stream that fails are one line and
    exit code 2. Ctrl-C is a line and 130, output that nobody reads any more one and 141.
    """
    refused: tuple[type[Exception], ...] = (InputError, *refusals)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # what it holds cannot be written: said when it is
                stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        try:
            return int(run() or 0)
        finally:
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return _code_of(error, refused)


def _code_of(error: BaseException, refused: tuple[type[Exception], ...]) -> int:
    """What ended a command, said; any other error is raised again.

    Pydantic, typer and rich make errors and exit codes of their own of what the terminal or the system did.
    """
    causes = list(_causes(error))
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
        return _end(INTERRUPTED, "interrupted")
    outside = isinstance(error, OSError)
    if (outside or isinstance(error, SystemExit)) and any(isinstance(cause, BrokenPipeError) for cause in causes):
        to_nowhere(sys.stdout)
        return _end(UNREAD, "nobody reads the output")
    if outside:
        said = f"error: the system: found {error}, expected files and streams that can be read and written"
        return _end(BAD_INPUT, said)
    if isinstance(error, refused):
        return _end(BAD_INPUT, printable(f"error: {error}"))
    raise error


def printable(text: str) -> str:
    """``text`` in one line that moves no cursor: names of files, servers and templates may hold any character."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in text
    )


def printable_lines(text: str) -> str:
    """``text`` with its lines, and nothing else that a terminal obeys."""
    return "\n".join(map(printable, text.split("\n")))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _end(code: int, line: str) -> int:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        to_nowhere(sys.stderr)
    return code


def to_nowhere(stream: Any) -> None:
    """What goes to a broken ``stream`` from now on, and what it still holds, is dropped."""
    with contextlib.suppress(OSError, ValueError):  # no file behind it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class IgnoreBrokenPipe:
    """A stream whose reader may go: the command goes on without it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream's, unless it is broken."""
        return self._attempt(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        """As the stream's, unless it is broken."""
        self._attempt(self._stream.flush, None)

    def _attempt(self, act: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return act()
        except OSError:
            to_nowhere(self._stream)
            return otherwise


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """Work that is not lost when nobody reads what it says: neither stdout nor stderr fails in this block."""
    out, err = IgnoreBrokenPipe(sys.stdout), IgnoreBrokenPipe(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def hushed(act: Callable[..., Any]) -> Callable[..., Any]:
    """``act`` with :func:`hush_libraries` before it."""

    @wraps(act)
    def run(*arguments: Any, **choices: Any) -> Any:
        hush_libraries()
        return act(*arguments, **choices)

    return run


def hush_libraries() -> None:
    """No log lines of Speculators, no progress bars of datasets, none and no warnings of transformers.

    What is said goes to the file of :func:`log_libraries`, where there is one.
    """
    import datasets
    from transformers.utils import logging

    logger.remove()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if not _logs:
        logging.set_verbosity_error()
        return
    logger.add(_logs[-1])
    logging.disable_default_handler()
    logging.enable_propagation()


_logs: list[Any] = []
"""Where libraries speak."""


def log_libraries(file: Path) -> None:
    """From now on what libraries say in this process is added to ``file``: what they log, warn of, or write themselves.

    What this package prints, and its own warnings, go on to where they went.
    """
    log = file.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
    for number, name in ((1, "stdout"), (2, "stderr")):
        getattr(sys, name).flush()
        own = os.fdopen(os.dup(number), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        setattr(sys, name, own)
        os.dup2(log.fileno(), number)
    _logs.append(log)
    logging.basicConfig(stream=log, force=True)
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")  # its own handlers write to the terminal
    here = str(Path(__file__).parent)

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        own = filename.startswith(here)
        text = f"warning: {message}\n" if own else warnings.formatwarning(message, category, filename, lineno, line)
        (sys.stderr if own else log).write(text)

    warnings.showwarning = show
