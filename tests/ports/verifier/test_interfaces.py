"""Whether vLLM serves a draft of a verifier is said before anything is trained or started."""

import json

import pytest

import ports.verifier.interfaces
from parity.fixtures.architectures import ARCHITECTURES
from ports.draft import command
from ports.draft.command import make
from ports.draft.settings import DraftSettings
from ports.verifier.interfaces import KNOWN, interfaces, refuse_unserved, serving_of
from tests.needs import VLLM

VERSION = json.loads(KNOWN.read_text())["version"]
SERVED = {"gemma": False, "gemma2": False, "gemma3_text": False, "cohere": False}


def config_of(name, folder):
    (folder / "config.json").write_text(json.dumps(ARCHITECTURES[name].config))
    return str(folder)


@pytest.mark.parametrize("here", [None, VERSION])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_classes_of_the_newest_that_was_tried_tell(name, here, tmp_path, monkeypatch):
    monkeypatch.setattr(ports.verifier.interfaces, "installed", lambda: here)
    found = serving_of("eagle3", config_of(name, tmp_path))
    assert found.serves is SERVED.get(name, True)
    assert f"vLLM {VERSION}" in found.why
    assert ("none is here" in found.why) is (here is None)
    assert ARCHITECTURES[name].config["architectures"][0] in found.why
    assert serving_of("hass", str(tmp_path)).serves is True, "for which vLLM's classes need no interface"


@pytest.mark.parametrize(
    ("told", "serves", "said"),
    [
        ({"version": "9.9", "eagle3": {"Gemma3ForCausalLM": True}}, True, "vLLM 9.9, never tried with these drafts"),
        ({"version": "9.9", "eagle3": {"Gemma3ForCausalLM": False}}, False, "no EAGLE-3 interface in Gemma3"),
        ({"version": "9.9", "eagle3": {}}, None, "no class of its own for Gemma3ForCausalLM"),
        (None, None, f"does not tell, and was never tried; vLLM {VERSION}"),
    ],
)
def test_another_version_is_asked_itself(told, serves, said, tmp_path, monkeypatch):
    monkeypatch.setattr(ports.verifier.interfaces, "installed", lambda: "9.9")
    monkeypatch.setattr(ports.verifier.interfaces, "_ask", lambda architecture: told)
    found = serving_of("eagle3", config_of("gemma3_text", tmp_path))
    assert found.serves is serves
    assert said in found.why


def test_a_version_that_cannot_be_asked_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(ports.verifier.interfaces.sys, "executable", "/bin/false")
    assert ports.verifier.interfaces._ask("LlamaForCausalLM") is None


class BegunError(Exception):
    """Something was made."""


def test_draft_says_it_before_it_makes_anything(tmp_path, monkeypatch, capsys):
    def begin(*_):
        raise BegunError

    monkeypatch.setattr(command, "Plan", lambda settings: None)
    monkeypatch.setattr(command, "_go_through", begin)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "evaluation.json").write_text("{}")
    (tmp_path / "rows").write_text("")
    model = config_of("gemma3_text", tmp_path)
    settings = DraftSettings(model=model, data=str(tmp_path / "rows"), out=tmp_path / "out")
    with pytest.raises(BegunError):
        make(settings)
    assert "no EAGLE-3 interface in Gemma3ForCausalLM" in capsys.readouterr().err


def test_bench_refuses_at_once(tmp_path, refuses):
    model = config_of("gemma3_text", tmp_path)
    with refuses(model, "vLLM", "has no EAGLE-3 interface in Gemma3ForCausalLM", "a HASS draft"):
        refuse_unserved("eagle3", model)
    refuse_unserved("hass", model)


@VLLM
def test_the_file_is_what_the_installed_one_says():
    known = json.loads(KNOWN.read_text())
    if (found := interfaces("LlamaForCausalLM", "Gemma3ForCausalLM", "Olmo2ForCausalLM"))["version"] == VERSION:
        assert found["eagle3"].items() <= known["eagle3"].items()
