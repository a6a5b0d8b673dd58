"""Code that lies beside a verifier's weights: nobody is asked whether to run it, and it runs by a flag alone."""

import os
from pathlib import Path

import pytest

from parity.fixtures.tokenizer import build_tokenizer
from ports.flags import parse
from ports.generate import answers
from ports.verifier import trust
from ports.verifier.config import verifier_config
from ports.verifier.fingerprint import verifier_fingerprint
from ports.verifier.loading import check_verifier, load_verifier, verifier_parameters
from ports.verifier.tokenizer import open_tokenizer
from tests.commands import main_of
from tests.ports.conftest import edit

CODE = """
from pathlib import Path
from transformers import {base}
Path({trace!r}).touch()
class {name}({base}):
    {body}
"""
CONFIG, TOKENIZER, MODEL = "configuration_own.py", "tokenization_own.py", "modeling_own.py"


@pytest.fixture
def asked(monkeypatch):
    """Everything that this process asks a terminal where somebody says yes."""
    questions = []
    monkeypatch.setattr("builtins.input", lambda text="": questions.append(text) or "y")
    monkeypatch.delenv(trust.TRUSTED, raising=False)
    return questions


@pytest.fixture
def trace(fixture):
    return fixture / "executed"


@pytest.fixture
def own(fixture, trace, asked, tmp_path):
    """A verifier whose config, tokenizer and model are of classes that lie beside it."""
    folder = build_tokenizer(fixture / "verifier")
    bodies = {
        CONFIG: ("OwnConfig", "LlamaConfig", f'model_type = "{tmp_path.name}"'),
        TOKENIZER: ("OwnTokenizer", "PreTrainedTokenizerFast", "pass"),
        MODEL: ("OwnModel", "LlamaForCausalLM", "from .configuration_own import OwnConfig as config_class"),
    }
    for file, (name, base, body) in bodies.items():
        (folder / file).write_text(CODE.format(trace=str(trace), name=name, base=base, body=body))
    classes = dict.fromkeys(("AutoModel", "AutoModelForCausalLM"), "modeling_own.OwnModel")
    classes["AutoConfig"] = "configuration_own.OwnConfig"
    edit(folder / "config.json", model_type=tmp_path.name, auto_map=classes)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]})
    edit(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer")
    return str(folder)


OPENED = {
    "verifier": verifier_config,
    "tokenizer": open_tokenizer,
    "weights": lambda name: load_verifier(name, "auto", head=True),
    "weights, for vLLM": check_verifier,
    "verifier, to count": verifier_parameters,
}


@pytest.mark.parametrize("part", OPENED)
def test_code_is_not_run_and_nobody_is_asked(own, trace, asked, refuses, part):
    with refuses(own, part.split(",")[0], "code of its own, which is not run", "--trust-remote-code from who has"):
        OPENED[part](own)
    assert not trace.exists()
    assert asked == []


@pytest.mark.parametrize("part", OPENED)
def test_who_trusts_it_runs_it(own, trace, asked, part):
    parse(answers.AnswersSettings, ["--verifier", own, "--data", "none", "--out", "none", "--trust-remote-code"])
    OPENED[part](own)
    assert trace.exists()
    assert asked == []
    assert os.environ[trust.TRUSTED] == "1", "for what is started from here"


@pytest.mark.parametrize("command", ["records", "answers"])
def test_a_command_says_so_in_a_line(own, trace, asked, tmp_path, capsys, command):
    (tmp_path / "talk.jsonl").write_text('{"prompt": "Hello"}\n')
    words = ["--verifier", own, "--out", str(tmp_path / "out"), "--data", str(tmp_path / "talk.jsonl")]
    words += ["--dataset=any"] if command == "records" else []
    assert main_of(command)(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "code of its own, which is not run, expected --trust-remote-code from who has read it" in line
    assert (trace.exists(), asked) == (False, [])


def test_code_that_is_run_is_a_part_of_the_verifier(own, asked):
    def changes():
        before, code = verifier_fingerprint(own), Path(own) / MODEL
        code.write_text(code.read_text() + "\n")
        return verifier_fingerprint(own) != before

    assert not changes(), "it is not run"
    trust.trust_remote_code()
    assert changes()
