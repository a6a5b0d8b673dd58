"""The port to copy: green as it is, under another name too, and red by name when a fault is planted."""

import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import ports.training.runs
from parity import Clip, ParityError, run_pair
from parity.pair import find_pair
from ports.errors import InputError

SPROUT = Path(__file__).resolve().parents[2] / "examples" / "sprout"


@pytest.fixture(scope="module")
def port():
    """The package's modules by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SPROUT.parent)
        names = ("cases", "compare", "model", "original", "test_parity", "train")
        yield SimpleNamespace(**{name: import_module(f"sprout.{name}") for name in names})


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
def test_the_pair_is_green_and_red_by_name(original, port_s, failed, port):
    pair = port.compare.PAIR
    report = run_pair(replace(pair, original=replace(pair.original, **original), port=replace(pair.port, **port_s)))
    assert (report.failed, report.passed) == (failed, not failed)


def test_the_command_trains_like_the_original_and_resumes(port, tmp_path):
    port.test_parity.test_the_command_trains_like_the_original(tmp_path / "a")
    port.test_parity.test_the_command_resumes_exactly_and_speculators_opens_its_checkpoint(tmp_path / "b")


def test_a_command_that_trains_something_else(port, monkeypatch, tmp_path):
    build = port.train.build_objective
    longer = {"forward_num_total": 4}
    monkeypatch.setattr(port.train, "build_objective", lambda s, draft: build(s.model_copy(update=longer), draft))
    with pytest.raises(ParityError, match="curve"):
        port.test_parity.test_the_command_trains_like_the_original(tmp_path)


@pytest.mark.parametrize("fault", ["resumed from the weights alone", "a tensor is not saved"])
def test_a_command_that_loses_something(fault, port, monkeypatch, tmp_path):
    model = port.model.SproutModel
    if fault == "a tensor is not saved":
        monkeypatch.setattr(model, "_keys_to_ignore_on_save", [*model._keys_to_ignore_on_save, "fc.bias"])
    else:
        monkeypatch.setattr(ports.training.runs, "resume", lambda loop, checkpoint, checkpoint_manager: None)
    with pytest.raises(AssertionError, match=r"fc\.bias"):
        port.test_parity.test_the_command_resumes_exactly_and_speculators_opens_its_checkpoint(tmp_path)


def test_a_copy_under_another_name_is_a_port_of_its_own(tmp_path, monkeypatch):
    """As the page makes one."""
    copy = shutil.copytree(SPROUT, tmp_path / "sapling", ignore=lambda *_: ["__pycache__"])
    for file in copy.glob("*.py"):
        file.write_text(file.read_text().replace("sprout", "sapling").replace("Sprout", "Sapling"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    pair = find_pair(f"{copy / 'compare.py'}:PAIR")
    assert (pair.name, run_pair(pair).passed) == ("sapling", True)
