"""The pytest plugin: pairs as test items, their options, and a last line that says what was compared.

Kept free of torch and of the harness at import time, since pytest loads it in every session of an environment that has
the package installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from parity.pair import Options, Pair
    from parity.verdict import Report, Row

COMPARED = pytest.StashKey[list[Any]]()
WANTED = pytest.StashKey[list[tuple[Path, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--pair FILE.py:NAME``, ``--original DIR`` (``--prototype``) and ``--recordings DIR``."""
    group = parser.getgroup("parity", "parity of ports and prototypes")
    group.addoption("--pair", action="append", default=[], help="FILE.py:NAME of a parity.Pair, eagle3 or hass: run it")
    default = os.environ.get("PARITY_PROTOTYPE")
    group.addoption("--prototype", "--original", default=default, help="checkout of the originals: run them live")
    group.addoption("--recordings", default=None, help="folder of recorded cases; default: those shipped")


def pytest_configure(config: pytest.Config) -> None:
    """Collect the files of the pairs that are asked for."""
    config.stash[COMPARED] = []
    config.stash[WANTED] = wanted = [_place(name) for name in config.getoption("--pair")]
    sys.path += [str(file.parent) for file, _ in wanted]  # imports go from the file's folder, as in parity run
    if wanted:
        given = config.args if config.args_source is config.ArgsSource.ARGS else []
        config.args = [*given, *dict.fromkeys(str(file) for file, _ in wanted if str(file) not in given)]


def _place(name: str) -> tuple[Path, str]:
    """The file of a pair, and what it is called there."""
    from parity.pair import SHIPPED

    place, _, attribute = SHIPPED.get(name, name).rpartition(":")
    if name in SHIPPED:
        spec = find_spec(place)
        place = spec.origin or "" if spec else ""
    if not Path(place).is_file():
        raise pytest.UsageError(f"--pair: found {name}, expected FILE.py:NAME, {' or '.join(SHIPPED)}")
    return Path(place).resolve(), attribute


def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> Any:
    """A pair that is called like a test, or that ``--pair`` names."""
    if (type(obj).__module__, type(obj).__name__) != ("parity.pair", "Pair"):
        return None
    wanted = (collector.path, name) in collector.config.stash[WANTED]
    return PairCollector.from_parent(collector, name=name, pair=obj) if wanted or name.startswith("test") else None


class PairCollector(pytest.Collector):
    """One item a case, side and check, all asked of one runner, and one a job; a case that is left out has none.

    Of a pair with known differences, one more a case: does the port run without them?
    """

    def __init__(self, pair: Pair, **words: Any) -> None:
        super().__init__(**words)
        self.pair, self.raised = pair, list[Exception]()

    def collect(self) -> Iterator[pytest.Item]:
        """The items, case after case."""
        from parity.pair import Options
        from parity.run import Runner, leaves_out, sides_of

        given = (self.config.getoption(name) for name in ("--original", "--recordings"))
        original, recordings = (Path(folder) if folder else None for folder in given)
        pair = self.pair.at(original if self.pair.live else None, recordings)
        runner = Runner(pair, pair.chosen(None))
        self.config.add_cleanup(runner.close)
        for case in pair.find_cases(recordings):
            for side in sides_of(pair):
                checks = [] if leaves_out(pair.original, case) or leaves_out(side, case) else runner.checks(side)
                for check in checks:
                    name = f"{case.name or pair.name}-{side.name or 'port'}-{check.name}"
                    yield RowsItem.from_parent(self, name=name, ask=partial(runner.ask, case, side, check))
            if pair.known_differences and not leaves_out(pair.original, case) and not leaves_out(pair.port, case):
                name = f"{case.name or pair.name}-{pair.port.name or 'port'}-as_it_is"
                yield RowsItem.from_parent(self, name=name, ask=partial(runner.ask_as_it_is, case))
        for name, job in pair.jobs.items():
            yield RowsItem.from_parent(self, name=name, ask=partial(_measured, job, Options(original, recordings)))


def _measured(job: Callable[[Options], Report], options: Options) -> list[Row]:
    """The rows of what a pair measures once."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("other workers take the cores: run it with -n 0, or parity run")
    return job(options).rows


class RowsError(AssertionError):
    """Rows that did not pass, one a line, below where it first goes wrong."""


class RowsItem(pytest.Item):
    """Rows, asserted; skipped where there is nothing to assert, with the reason."""

    def __init__(self, ask: Callable[[], list[Row]], **words: Any) -> None:
        super().__init__(**words)
        self.ask = ask

    def runtest(self) -> None:
        """What a side raises fails the first item that asks for it, and skips the others."""
        assert isinstance(self.parent, PairCollector)
        try:
            rows = self.ask()
        except Exception as error:
            if error in self.parent.raised:
                pytest.skip(f"the side did not run: {type(error).__name__}")
            self.parent.raised.append(error)
            raise
        if rows and all(row.status.value in ("not applicable", "says nothing") for row in rows):
            pytest.skip(rows[0].detail)
        self.config.stash[COMPARED] += rows
        failed = [row for row in rows if row.compared and not row.passed]
        if failed or not rows:
            lines = [row.hint for row in failed if row.hint]
            lines += [f"{row.tensor or row.quantity}: {row.measured} > {row.allowed} {row.detail}" for row in failed]
            raise RowsError("\n".join(lines) or "nothing compared")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Rows say it all; the trace of a side's own exception is told."""
        return str(excinfo.value) if excinfo.errisinstance(RowsError) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name


@pytest.fixture(scope="session")
def compared(request: pytest.FixtureRequest) -> list[Any]:
    """Rows a test appends here are counted in the last line of the session."""
    return request.config.stash[COMPARED]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The verdict on all rows of the session, as ``parity run`` has it."""
    if rows := config.stash[COMPARED]:
        from parity.verdict import Report

        terminalreporter.section("parity")
        report = Report()
        report.add(rows)
        terminalreporter.write_line(report.verdict_line())
