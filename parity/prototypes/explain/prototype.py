"""What the prototype's recording says it trained with, for the table of settings."""

from __future__ import annotations

from typing import Any

from parity.files import read_lines, read_object
from parity.prototypes.case import DEFAULTS, Case
from parity.prototypes.recorded import configuration


def prototype_facts(case: Case) -> dict[str, Any]:
    """Settings of the recorded run, read from its files."""
    first, config = next(iter(read_lines(case.directory / "trajectory.jsonl"))), case.meta.train_config
    clip = first["clip"]
    return {
        **configuration(case),
        "default_ttt_steps": int(DEFAULTS["forward_num_total"]),
        "default_bs": int(DEFAULTS["bs"]),
        "clip": f"{clip['kind']} {clip['max']}",
        "step_weights": step_weights(first),
        "terms": ", ".join(f"{name} {value}" for name, value in config.items() if name.endswith("_w")),
        "noise": f"{config.get('noise')}, {config.get('std')}",
        "rope_theta": read_object(case.configpath).get("rope_theta", 10000.0),
    }


def step_weights(point: dict[str, Any]) -> list[float]:
    """The share of every step's loss in the reported one where they are equal; empty where they are not."""
    losses = point["kldiv_steps"]
    weight = point["loss"] / sum(losses)
    nearest = min((1.0, 1 / len(losses)), key=lambda candidate: abs(candidate - weight))
    return [nearest] * len(losses) if abs(weight - nearest) < 1e-6 else []
