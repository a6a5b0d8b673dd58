"""One program for every command: it loads nothing before it knows which, and hands on words and exit codes."""

import importlib
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ports import cli, flags
from ports.spellings import NOW
from ports.training.settings import CommandSettings

LIBRARIES = "('torch', 'transformers.models', 'speculators', 'datasets')"
LAZY = f"import sys, ports.cli; ports.cli.main(sys.argv[1:]); print([n for n in {LIBRARIES} if n in sys.modules])"


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_and_version_load_no_library(words):
    done = subprocess.run([sys.executable, "-c", LAZY, *words], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    for name in cli.COMMANDS if words == ["--help"] else ():
        assert re.search(rf"^│ {name.split()[0]} ", done.stdout, re.MULTILINE), name
    if words == ["--version"]:
        assert re.match(r"speculator \d+\.\d+", done.stdout)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_example_of_the_help_is_a_command_line(name, monkeypatch, capsys):
    """And the help of every command shows it, says what its flags are for, and lists one name a thing."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERMINAL_WIDTH", "300")
    command = cli.load(name)
    assert callable(flags.read(command, cli.COMMANDS[name].example.split()))
    assert cli.main([*name.split(), "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Example: speculator {name} {cli.COMMANDS[name].example}" in said
    for parameter in command.params:
        assert parameter.help, parameter.name
        assert parameter.hidden or parameter.name not in NOW, parameter.name
    assert {word.replace("-", "_") for word in re.findall(r"--([a-z][\w-]*)", said)} & NOW.keys() == set()


class Tried(CommandSettings):
    """A command's."""

    model_path: str
    configpath: str
    bs: int = 1


@pytest.fixture
def stand_in(monkeypatch):
    """A command that says what it was given, and what is to be said of it."""

    def put(answer):
        given = []
        command = flags.command(Tried, lambda settings: given.append(settings) or answer)
        monkeypatch.setitem(sys.modules, "stand_in", SimpleNamespace(command=command))
        monkeypatch.setitem(cli.COMMANDS, "try out", cli.Entry("stand_in:command", "", "a test", ""))
        return given

    return put


LINE = ["try", "out", "--verifier", "a", "--draft-config=b"]


@pytest.mark.parametrize(("said", "code"), [(75, 75), (None, 0)])
def test_words_and_exit_codes_are_handed_on(stand_in, said, code):
    given = stand_in(said)
    assert cli.main([*LINE, "--batch_size", "2"]) == code
    assert (given[0].model_path, given[0].configpath, given[0].bs) == ("a", "b", 2)


def test_a_file_serves_several_commands(stand_in, tmp_path, capsys):
    """Keys of others are left to them, what nobody has is refused, as a prototype's name is."""
    given, file = stand_in(0), tmp_path / "run.yaml"
    file.write_text("verifier: a\ndraft_config: b\nbatch_size: 2\nheld_out: 3\nval-fraction: 0.1\n")
    assert cli.main(["try", "out", "--config", str(file)]) == 0
    assert (given[0].model_path, given[0].bs) == ("a", 2)
    for key in ("heldout", "bs", "epoch"):
        file.write_text(f"verifier: a\n{key}: 3\n")
        assert cli.main(["try", "out", "--config", str(file)]) == 2
        assert f"{file}: {key}: found an unknown key, expected one of " in capsys.readouterr().err


def test_a_shell_completes_commands_flags_and_values(monkeypatch, capsys):
    monkeypatch.setenv("_SPECULATOR_COMPLETE", "complete_bash")
    for line, expected in [("speculator tr", "train"), ("speculator train eagle3 --ttt-s", "--ttt-steps")]:
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
        with pytest.raises(SystemExit):
            cli.typer.main.get_command(cli.app)(prog_name="speculator")
        assert expected in capsys.readouterr().out.split()


REFUSED = [
    (["nothing"], "command: found nothing, expected draft | answers | records | "),
    (["train"], "command: found train, expected train eagle3 | train hass"),
    (["train", "medusa"], "command: found train medusa, expected train eagle3 | train hass"),
    (
        ["absent"],
        "speculator absent: import: found No module named 'no_such_module', expected what it needs, installed",
    ),
    (["answers", "--data", "x"], "--verifier: found nothing, expected verifier: Hugging Face directory"),
    (["train", "eagle3", "--epoch", "1"], "--epoch: found No such option: --epoch, expected --epochs\n"),
    (["train", "hass", "--topk_w=1"], "--topk-w: found No such option: --topk-w, expected "),
    (
        ["train", "eagle3", "--basepath=x", "--forward_num_total", "3", "--foo", "--lr", "1", "--ttt-stops", "2"],
        "--basepath, --forward-num-total, --foo, --ttt-stops: found no such flags, expected --verifier for "
        "--basepath, --ttt-steps for --forward-num-total, what --help lists for --foo, --ttt-steps for --ttt-stops",
    ),
    (["train", "eagle3", "--foo", "--resume"], "--foo: found No such option: --foo, expected what --help lists"),
    (["draft", "--ttt-alignment", "chain"], "expected --ttt-alignment in train eagle3, train hass alone\n"),
    (["evaluate", "--foo", "--bar=3"], "--foo, --bar: found no such flags, expected what --help lists for --foo, what"),
    (["evaluate", "x", "--t2d", "y"], "--t2d: found No such option: --t2d, expected --t2d in train eagle3 alone\n"),
    (
        ["train", "eagle3", "--verifier=a", "--draft-config=b", "--data=c", "--out=d", "--ttt-alignment", "served"],
        "--ttt-alignment: found 'served', expected 'prototype' or 'chain': prototype: keys of earlier steps at ",
    ),
    (["train", "eagle3", "--resume"], "--resume: found Option '--resume' requires an argument, expected checkpoint"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_what_is_no_command_is_refused_in_a_line(words, said, capsys, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "absent", cli.Entry("no_such_module:command", "", "a test", ""))
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_no_name_of_ours_is_a_prototypes():
    assert set(NOW.values()) & set(NOW) == set()


@pytest.mark.parametrize("entry", ["eagle3", "hass"])
def test_ctrl_c_while_a_command_is_made_is_a_line(entry, monkeypatch, capsys):
    def pressed(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", pressed)
    assert importlib.import_module(f"ports.{entry}.train").main(["--out", "nowhere"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
