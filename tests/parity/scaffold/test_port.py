"""A laid-out port trains before anybody has touched it; its pair and suite are green on one that is its own original,
and red by name when a fault is planted."""

from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from speculators import SpeculatorModel

import ports.training.runs
from parity import Clip, FolderSide, ParityError, run_pair
from parity.scaffold import new_port
from ports.errors import InputError

NAME = "sapling_port"


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """The package's modules by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(new_port(NAME, tmp_path_factory.mktemp(NAME)).parent)
        names = ("cases", "compare", "model", "original", "train")
        yield SimpleNamespace(**{name: import_module(f"{NAME}.{name}") for name in names})


@pytest.fixture
def suite(port, monkeypatch):
    """Its tests of the command, with the port in the prototype's place."""
    tests = import_module(f"{NAME}.tests.test_parity")
    assert getattr(tests, f"test_{NAME}") is port.compare.PAIR
    monkeypatch.setattr(tests, "ORIGINAL", replace(port.compare.PORT, name="prototype"))
    return tests


def test_it_trains_saves_and_opens(port, tmp_path):
    for given in (port.original.ORIGINAL.build, lambda: port.original.ORIGINAL.loss(None, None)):
        with pytest.raises(NotImplementedError, match=r"original\.py holds no"):
            given()
    assert port.compare.PAIR.at(None, tmp_path).original == FolderSide(tmp_path, "recorded")
    port.train.execute(port.cases.settings(cpdir=tmp_path))
    draft = SpeculatorModel.from_pretrained(tmp_path / "pass_1")
    saved = load_file(tmp_path / "pass_1" / "model.safetensors")
    assert type(draft).__name__ == "SaplingPortModel"
    assert saved.keys() == {"fc.weight", "fc.bias", "norm.weight"}
    assert all(torch.equal(value, draft.get_parameter(name)) for name, value in saved.items())
    before = port.train.build(port.cases.settings(configpath=str(tmp_path / "pass_1")))
    assert before.config.transformer_layer_config.hidden_size == port.cases.VERIFIER.hidden_size
    assert not torch.equal(before.fc.weight, draft.fc.weight)


@pytest.mark.parametrize(
    ("config", "changes", "found"),
    [
        ('{"hidden_size": 64}', {}, "hidden_size: found 64"),
        ('{"model_type": "qwen3"}', {}, "model_type: found"),
        ("", {"activation_checkpointing": True}, "--activation_checkpointing"),
    ],
)
def test_bad_input_is_refused(config, changes, found, port, tmp_path):
    (tmp_path / "draft.json").write_text(config)
    settings = port.cases.settings(**changes, **({"configpath": str(tmp_path / "draft.json")} if config else {}))
    with pytest.raises(InputError, match=found):
        port.train.build_objective(settings, port.train.build(settings))


FAULTS = {
    "none": ({}, {}, ()),
    "half the norm, which AdamW cancels": ({"step": Clip("norm", 0.25)}, {}, ("clip",)),
    "rates that are not the formula's": ({}, {"rate": abs}, ("schedule",)),
}


@pytest.mark.parametrize(("original", "port_s", "failed"), FAULTS.values(), ids=FAULTS)
def test_the_pair_is_green_on_its_own_original_and_red_by_name(original, port_s, failed, port, monkeypatch):
    monkeypatch.setattr(port.compare, "GRAD_CLIP", 0.5)
    mine, theirs = replace(port.compare.PORT, name="prototype", **original), replace(port.compare.PORT, **port_s)
    report = run_pair(replace(port.compare.PAIR, original=mine, port=theirs))
    assert (report.failed, report.passed) == (failed, not failed)


def test_the_command_trains_like_the_original_and_resumes(suite, tmp_path):
    suite.test_the_command_trains_like_the_original(tmp_path / "a")
    suite.test_the_command_resumes_exactly_and_speculators_opens_its_checkpoint(tmp_path / "b")


def test_a_command_that_trains_something_else(suite, port, monkeypatch, tmp_path):
    build = port.train.build_objective
    longer = {"forward_num_total": 4}
    monkeypatch.setattr(port.train, "build_objective", lambda s, draft: build(s.model_copy(update=longer), draft))
    with pytest.raises(ParityError, match="curve"):
        suite.test_the_command_trains_like_the_original(tmp_path)


@pytest.mark.parametrize("fault", ["resumed from the weights alone", "a tensor is not saved"])
def test_a_command_that_loses_something(fault, suite, port, monkeypatch, tmp_path):
    model = port.model.SaplingPortModel
    if fault == "a tensor is not saved":
        monkeypatch.setattr(model, "_keys_to_ignore_on_save", [*model._keys_to_ignore_on_save, "fc.bias"])
    else:
        monkeypatch.setattr(ports.training.runs, "resume", lambda loop, checkpoint, checkpoint_manager: None)
    with pytest.raises(AssertionError, match=r"fc\.bias"):
        suite.test_the_command_resumes_exactly_and_speculators_opens_its_checkpoint(tmp_path)
