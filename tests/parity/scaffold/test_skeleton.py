"""A laid-out port trains before anybody has touched it, and its suite stands on its own feet."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from speculators import SpeculatorModel

from ports.errors import InputError

NAME = "skeleton_port"


@pytest.fixture(scope="module")
def port(lay_out: Callable[[str], str]) -> SimpleNamespace:
    """The package's modules by name."""
    package = lay_out(NAME)
    names = ("cases", "compare", "original", "train")
    return SimpleNamespace(**{name: import_module(f"{package}.{name}") for name in names})


def test_it_trains_saves_and_opens(port: SimpleNamespace, tmp_path: Path) -> None:
    port.train.execute(port.cases.settings(cpdir=tmp_path))
    draft = SpeculatorModel.from_pretrained(tmp_path / "pass_1")
    saved = load_file(tmp_path / "pass_1" / "model.safetensors")
    assert type(draft).__name__ == "SkeletonPortModel"
    assert saved.keys() == {"fc.weight", "fc.bias", "norm.weight"}
    assert all(torch.equal(value, draft.get_parameter(name)) for name, value in saved.items())
    before = port.train.build(port.cases.settings())
    assert not torch.equal(before.fc.weight, draft.fc.weight)


def test_its_checkpoint_is_a_config_for_the_next_run(port: SimpleNamespace, tmp_path: Path) -> None:
    port.train.build(port.cases.settings()).save_pretrained(tmp_path / "draft")
    again = port.train.build(port.cases.settings(configpath=str(tmp_path / "draft")))
    assert again.config.transformer_layer_config.hidden_size == port.cases.VERIFIER.hidden_size


def test_bad_input_is_refused(port: SimpleNamespace, tmp_path: Path) -> None:
    settings = port.cases.settings(activation_checkpointing=True, cpdir=tmp_path)
    with pytest.raises(InputError, match="--activation_checkpointing"):
        port.train.build_objective(settings, port.train.build(settings))
    for text, found in (
        ('{"hidden_size": 64}', "hidden_size: found 64"),
        ('{"model_type": "qwen3"}', "model_type: found"),
    ):
        (tmp_path / "draft.json").write_text(text)
        with pytest.raises(InputError, match=found):
            port.train.build(port.cases.settings(configpath=str(tmp_path / "draft.json")))


def test_the_original_is_missing(port: SimpleNamespace) -> None:
    with pytest.raises(NotImplementedError):
        port.original.ORIGINAL.build()


def test_the_same_batches_every_time(port: SimpleNamespace) -> None:
    first, second = port.cases.batches(), port.cases.batches()
    assert len(first) == len(port.cases.LENGTHS) // port.cases.BATCH_SIZE
    for mine, theirs in zip(first, second, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
