"""The port against its original, a test a check in the order of work (``pytest -x``), and the training command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from speculators import SpeculatorModel

from parity import Trace, compare_traces, trace_side
from parity.prototypes.command import save_start, trace_command
from ports.training.loop import Loop
from ports.training.observer import Observer
from sprout import cases
from sprout.compare import PAIR, PORT
from sprout.names import NAMES
from sprout.original import ORIGINAL
from sprout.train import build, build_dataset, start

test_sprout = PAIR


def command(folder: Path, **changes: Any) -> Trace:
    """The training command's own loop on this case, with its fused loss and its loader."""

    def begin(observer: Observer) -> Loop:
        chosen = cases.settings(cpdir=folder, **changes)
        draft = build(chosen)
        return start(chosen, draft, build_dataset(chosen, draft.config), observer=observer)

    return trace_command(begin, seed=cases.SEED)


def test_the_command_trains_like_the_original(tmp_path: Path) -> None:
    """Where the parts are right and this is not: build_objective, build_dataset and start in train.py."""
    first = save_start(ORIGINAL, PORT, NAMES, tmp_path / "first", cases.SEED)
    original = trace_side(ORIGINAL, cases.batches(), seed=cases.SEED, steps=cases.STEPS)
    trained = command(tmp_path / "runs", ckpt_path=first, weights_only=True)
    compare_traces(original, trained, names=NAMES, checks=["curve"]).raise_if_failed()


def test_the_command_resumes_exactly_and_speculators_opens_its_checkpoint(tmp_path: Path) -> None:
    last = f"pass_{cases.PASSES - 1}"
    command(tmp_path / "straight")
    command(tmp_path / "stopped", max_steps=3, save_steps=3)
    command(tmp_path / "stopped", ckpt_path=Path("auto"))
    straight, resumed = (load_file(tmp_path / run / last / "model.safetensors") for run in ("straight", "stopped"))
    draft = SpeculatorModel.from_pretrained(tmp_path / "straight" / last)
    assert straight.keys() == resumed.keys() == {name for name, p in draft.named_parameters() if p.requires_grad}
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name
        assert torch.equal(value, draft.get_parameter(name)), name
