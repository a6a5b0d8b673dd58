"""What README and docs promise: commands, options and names."""

from __future__ import annotations

import pytest
from typer.main import get_command

import parity
from parity.cli import app

COMMANDS = {
    "run": {"--recordings", "--prototype", "--original", "--report", "--json", "-k"},
    "record": {"--prototype", "--original", "--output", "--recordings", "-k"},
    "trace": {"--recordings", "-k", "--leave-out"},
    "compare": {"--names", "--tolerances", "--checks", "--report", "--json"},
    "new": {"--output"},
    "doctor": {"--prototype", "--original"},
}
NAMES = (
    *("CHECKS", "Case", "Cause", "CommandSide", "Finding", "FolderSide", "Joined", "Kind", "KitReport", "NameMap"),
    *("Options", "Pair", "ParityError", "Side", "Suggestion", "Tolerance", "Trace", "View", "compare_sides"),
    *("compare_traces", "read_trace", "run_pair", "single_step", "suggest_names", "trace_side", "transposed"),
    *("write_trace",),
)
PLUGIN = ("--pair", "--original", "--prototype", "--recordings")


@pytest.mark.parametrize(("command", "options"), COMMANDS.items(), ids=COMMANDS)
def test_the_command_has_its_options(command: str, options: set[str]) -> None:
    found = get_command(app).commands[command]  # type: ignore[attr-defined]
    assert options <= {word for parameter in found.params for word in parameter.opts}


@pytest.mark.parametrize("name", NAMES)
def test_the_name_can_be_imported(name: str) -> None:
    assert getattr(parity, name) is not None
    assert name in dir(parity)


def test_the_plugin_has_its_options_and_its_fixture(pytestconfig: pytest.Config) -> None:
    known = {word for option in pytestconfig._parser._anonymous.options for word in option.names()}
    known |= {word for group in pytestconfig._parser._groups for option in group.options for word in option.names()}
    assert set(PLUGIN) <= known
    assert hasattr(pytestconfig.pluginmanager.get_plugin("parity"), "compared")
