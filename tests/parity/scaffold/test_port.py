"""A laid-out port trains before anybody has touched it; its suite is green on one that is its own original, and red by
name when a fault is planted."""

from dataclasses import replace
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from speculators import SpeculatorModel

import ports.training.runs
from parity import Clip, FolderSide, KitReport
from parity.compare import RowKey
from parity.scaffold import new_port
from parity.verdict import Status
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
    """Its tests, with the port in the prototype's place."""
    tests, original = import_module(f"{NAME}.tests.test_parity"), replace(port.compare.PORT, name="prototype")
    monkeypatch.setattr(port.compare, "PAIR", replace(port.compare.PAIR, original=original))
    for module in (port.compare, tests):
        monkeypatch.setattr(module, "ORIGINAL", original)
    return tests


def test_it_trains_saves_and_opens(port, tmp_path):
    with pytest.raises(NotImplementedError):
        port.original.ORIGINAL.build()
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


def test_the_suite_is_green_on_its_own_original(suite, port, tmp_path):
    suite.test_the_original_runs()
    report, steps = suite.compare(), suite.test_step.pytestmark[0].args[1]
    assert {*steps, "original", "command", "rest"} == {*suite.ADVICE}
    for check in steps:
        suite.test_step(check, report)
    suite.test_nothing_else_failed(report)
    suite.test_the_command_trains_like_the_original(tmp_path / "a")
    suite.test_the_command_resumes_exactly_and_speculators_opens_its_checkpoint(tmp_path / "b")
    for test in (partial(suite.test_step, "forward"), suite.test_nothing_else_failed):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            test(KitReport())


def test_what_a_check_does_not_apply_to_is_no_failure(suite):
    passed = RowKey("clip", "one", "port").row("clip", "", 0.0, 1.0, True)
    absent = replace(passed, status=Status.NOT_APPLICABLE, detail="nobody says how")
    suite.test_step("clip", KitReport([passed, absent]))
    with pytest.raises(pytest.skip.Exception, match="nobody says how"):
        suite.test_step("clip", KitReport([absent]))


@pytest.mark.parametrize(("changes", "named"), [({"step": Clip("norm", 0.25)}, "clip"), ({"rate": abs}, "schedule")])
def test_a_fault_that_no_number_shows_fails_the_suite(changes, named, suite, port, monkeypatch):
    """Half the norm in the original, which AdamW cancels; rates that are not the formula's."""
    monkeypatch.setattr(port.compare, "GRAD_CLIP", 0.5)
    pair, side = port.compare.PAIR, "original" if named == "clip" else "port"
    changed = replace(pair, **{side: replace(getattr(pair, side), **changes)})
    monkeypatch.setattr(port.compare, "PAIR", changed)
    report = suite.compare()
    assert report.failed == (named,)
    with pytest.raises(pytest.fail.Exception, match=f"next step, rest:\n.*\n.*{named}"):
        suite.test_nothing_else_failed(report)
    if named == "clip":
        with pytest.raises(pytest.fail.Exception, match="next step, clip:"):
            suite.test_step("clip", report)


def test_a_step_says_what_to_do_and_those_after_it_wait(suite, port, monkeypatch):
    doubled = replace(port.compare.PORT, loss=lambda draft, batch: 2 * port.compare.loss(draft, batch))
    monkeypatch.setattr(port.compare, "PAIR", replace(port.compare.PAIR, port=doubled))
    report = suite.compare()
    suite.test_step("forward", report)
    with pytest.raises(pytest.fail.Exception, match="next step, loss:\nThe outputs are the original's"):
        suite.test_step("loss", report)
    with pytest.raises(AssertionError, match="an earlier step comes first"):
        suite.test_step("gradients", report)


def test_a_command_that_trains_something_else(suite, port, monkeypatch, tmp_path):
    build = port.train.build_objective
    longer = {"forward_num_total": 4}
    monkeypatch.setattr(port.train, "build_objective", lambda s, draft: build(s.model_copy(update=longer), draft))
    with pytest.raises(pytest.fail.Exception, match="next step, command:\nThe parts are right"):
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
