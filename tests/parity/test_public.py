"""What README and docs promise: commands, options and names."""

import pytest
from typer.main import get_command

from parity.cli import app

COMMANDS = {
    "run": {"--recordings", "--prototype", "--original", "--report", "--json", "-k"},
    "record": {"--prototype", "--original", "--output", "--recordings", "-k"},
    "trace": {"--recordings", "-k", "--leave-out"},
    "compare": {"--names", "--tolerances", "--checks", "--report", "--json"},
    "new": {"--output"},
    "doctor": {"--prototype", "--original"},
}


@pytest.mark.parametrize(("command", "options"), COMMANDS.items(), ids=COMMANDS)
def test_the_command_has_its_options(command, options):
    found = get_command(app).commands[command]
    assert options <= {word for parameter in found.params for word in parameter.opts}
