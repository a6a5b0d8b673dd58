"""The stand-ins, where the toys do not show them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from parity.prototypes.others import standins


def test_loaders_keep_the_order_and_other_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.data, "DataLoader", torch.utils.data.DataLoader)
    standins.load_in_order(2, ["b", "a"])

    class Names(torch.utils.data.Dataset):
        data = ("c",)

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> str:
            return self.data[index]

    loader = torch.utils.data.DataLoader(Names(), batch_size=1, shuffle=True, num_workers=3, collate_fn="".join)
    assert list(loader) == ["ba"]


def test_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand_like", torch.rand_like)
    standins.draw_no_noise()
    assert torch.equal(torch.rand_like(torch.ones(3)) - 0.5, torch.zeros(3))


def test_a_config_of_old(tmp_path: Path) -> None:
    source, target = tmp_path / "a.json", tmp_path / "b.json"
    source.write_text(json.dumps({"rope_theta": 7.0, "rope_scaling": {"factor": 8}}))
    standins.write_unscaled(source, target)
    assert json.loads(target.read_text()) == {"rope_theta": 7.0, "rope_scaling": None}
    config = standins.config_of_old(target, SimpleNamespace(rope_parameters={}))
    assert (config.rope_theta, config.rope_scaling) == (7.0, None)


def test_frequencies_are_filled_in() -> None:
    model = nn.Module()
    model.rotary = nn.Module()
    model.rotary.config = "config"
    model.rotary.rope_init_fn = lambda config, device: (torch.ones(2) * len(config), 1.0)
    model.rotary.register_buffer("inv_freq", torch.zeros(2), persistent=False)
    standins.fill_frequencies(model)
    assert torch.equal(model.rotary.inv_freq, torch.full((2,), 6.0))


def test_what_a_config_class_says() -> None:
    class Refusing:
        @staticmethod
        def from_pretrained(file: str) -> None:
            raise ValueError("no, got a lot of text")

    assert standins.refusal(Refusing, Path("draft.json")) == "ValueError: no"
    assert standins.refusal(SimpleNamespace(from_pretrained=str), Path("draft.json")) == ""


def test_the_engine_ends_at_the_first_step() -> None:
    heard = []
    model = nn.Linear(1, 1)
    engine = standins.Engine(model, lambda loss, names: heard.append((float(loss.detach()), names["__name__"])))
    loss = engine(input=torch.ones(1)).sum()
    engine.backward(loss)
    assert heard == [(float(loss.detach()), __name__)]
    assert model.weight.grad is not None
    with pytest.raises(standins.StepDoneError):
        engine.step()
