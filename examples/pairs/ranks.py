"""A port on one process against the same on two, by DDP and by FSDP2: what both train is one big batch.

    parity run examples/pairs/ranks.py:EAGLE3_DDP [--power]     # EAGLE3_FSDP2, HASS_DDP, HASS_FSDP2

The batch has three samples, so that the shares, and the rows of them that are in the loss, are uneven.
"""

from __future__ import annotations

import ports  # noqa: F401  # isort: skip  (a torchaudio of another build must not break transformers)

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from parity import Case, Clip, Draw, NameMap, Pair, Side
from parity.fixtures import RECORDINGS
from parity.prototypes.case import read_case
from parity.prototypes.port import ALGORITHMS, load_initial, reset_accelerate, settings_for
from parity.ranks import FAULTS
from parity.step import linear_schedule
from ports.eagle3.objective import Eagle3Objective
from ports.hass.objective import HassObjective
from ports.training.data import collate
from ports.training.objective import Normalisation
from ports.training.optimizer import build_optimizer, build_schedule
from ports.training.saving import load_weights, write_draft

STEPS, WARMUP, RATE, SAMPLES, NOISE = 5, 2, 1e-3, 3, 0.2
CLIPS = {"eagle3": Clip("norm", 1.0), "hass": Clip("value", 0.5)}


def uniforms(like: Tensor) -> Tensor:
    """What the noise on the features is drawn from."""
    return torch.rand_like(like)


def build(algorithm: str) -> Any:
    """The objective from recorded weights, with whose rows its loss is divided by."""
    reset_accelerate()
    case = read_case(RECORDINGS / f"{algorithm}_fp32_k3")
    settings: Any = settings_for(case, Path("unused"))
    draft = ALGORITHMS[algorithm].train.build(settings)
    load_initial(draft, case)
    for value in draft.parameters():  # a file's memory is not aligned as torch's own, and last bits depend on that
        value.data = value.data.clone()
    for part in draft.modules():  # where nobody looks at one, it is computed faster, to another last bit
        part.register_forward_hook(lambda *_: None)
    steps = settings.forward_num_total
    found = HassObjective(draft, steps, settings.topk) if algorithm == "hass" else Eagle3Objective(draft, steps)
    found.normalisation = Normalisation(Accelerator(cpu=True), together=True)
    return found


def loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    objective: Any = getattr(module, "module", module)
    features = batch["features"] + NOISE * (uniforms(batch["features"]) - 0.5)
    rows = objective.normalisation.sum(objective.rows(batch))
    outcome = module({**batch, "features": features}, rows)
    return objective.normalisation.loss(outcome.backward_loss)


def save(module: Any, folder: Path) -> None:
    write_draft(module.draft, folder)


def load(algorithm: str, folder: Path) -> Any:
    """As a run that goes on does."""
    objective = build(algorithm)
    load_weights(objective.draft, folder)
    return objective


@cache
def batches(algorithm: str) -> list[dict[str, Tensor]]:
    """Two of three recorded samples each, without noise and of one length, so that either can stand for the other."""
    case = read_case(RECORDINGS / f"{algorithm}_fp32_k3")
    settings: Any = settings_for(case, Path("unused"), noise=False)
    train = ALGORITHMS[algorithm].train
    dataset = train.build_dataset(settings, train.build(settings).config)
    whole = collate([dataset[place] for place in range(2 * SAMPLES)])
    return [{name: value[n * SAMPLES :][:SAMPLES] for name, value in whole.items()} for n in range(2)]


def cases(algorithm: str) -> list[Case]:
    return [Case(f"{algorithm} noise", batches(algorithm), steps=STEPS)]


def pair(algorithm: str, wrap: str) -> Pair:
    one = Side(
        partial(build, algorithm),
        loss,
        lambda model: build_optimizer(model, RATE),
        lambda optimizer: build_schedule(optimizer, STEPS, WARMUP),
        step=CLIPS[algorithm],
        rate=lambda step: RATE * linear_schedule(step, STEPS, WARMUP),
        save=save,
        load=partial(load, algorithm),
        name="one process",
    )
    return Pair(
        f"{algorithm}_{wrap}",
        one,
        replace(one, ranks=2, wrap=wrap, name=f"{wrap} of two"),
        partial(cases, algorithm),
        NameMap({"(whole)": None}, only_port=["(whole)"]),  # what it gives out is of a rank's own rows
        draws=[Draw("noise", f"{__name__}:uniforms", f"{__name__}:uniforms", seeds=20)],
        faults=FAULTS,
        batch_keys={"ids": "input_ids", "mask": "loss_mask", "attention": "attention_mask"},
    )


EAGLE3_DDP, EAGLE3_FSDP2 = pair("eagle3", "ddp"), pair("eagle3", "fsdp2")
HASS_DDP, HASS_FSDP2 = pair("hass", "ddp"), pair("hass", "fsdp2")
