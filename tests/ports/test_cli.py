"""One program for every command: it loads nothing before it knows which, and hands on words and exit codes."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

from ports import cli

LIBRARIES = "('torch', 'transformers.models', 'speculators', 'datasets')"
LAZY = f"import sys, ports.cli; ports.cli.main(['--help']); print([n for n in {LIBRARIES} if n in sys.modules])"


def test_help_names_every_command_and_loads_no_library() -> None:
    said = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=True).stdout
    for name in cli.COMMANDS:
        assert f"\n  {name} " in said
    assert said.endswith("[]\n")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_an_entry_point_of_its_own(name) -> None:
    if name == "bench":
        pytest.importorskip(cli.COMMANDS[name][0])
    assert callable(import_module(cli.COMMANDS[name][0]).main)


@pytest.mark.parametrize(("said", "code"), [(75, 75), (None, 0)])
def test_words_and_exit_codes_are_handed_on(monkeypatch, said, code) -> None:
    monkeypatch.setitem(sys.modules, "stand_in", SimpleNamespace(main=lambda: said))
    monkeypatch.setitem(cli.COMMANDS, "try out", ("stand_in", "a test"))
    monkeypatch.setattr(sys, "argv", [])
    assert cli.main(["try", "out", "--flag", "1"]) == code
    assert sys.argv == ["speculator try out", "--flag", "1"]


REFUSED = [
    (["nothing"], "command: found nothing, expected draft | answers | records | "),
    (["train"], "command: found train, expected train eagle3 | train hass"),
    (["train", "medusa"], "command: found train medusa, expected train eagle3 | train hass"),
    (
        ["absent"],
        "speculator absent: import: found No module named 'no_such_module', expected what it needs, installed",
    ),
    (["answers", "--data", "x"], "model: found nothing"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_what_is_no_command_is_refused_in_a_line(words, said, capsys, monkeypatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "absent", ("no_such_module", "a test"))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
