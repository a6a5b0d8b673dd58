"""What the other originals' scripts say they train with, beside the prototype's recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parity.prototypes.explain.study import Study
from parity.prototypes.others import OTHERS
from parity.report.numbers import MISSING

Lines = list[tuple[str, str, str]]


def setting_tables(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """One table an original, from the first study of it."""
    first: dict[str, Study] = {}
    for study in studies:
        first.setdefault(study.original.lower(), study)
    return [
        {
            "title": OTHERS[name].title,
            "lines": {"eagle": eagle_lines, "hass": hass_lines}[name](study.facts, study.facts["prototype"]),
            "standins": "; ".join(study.facts["standins"]),
        }
        for name, study in first.items()
    ]


def eagle_lines(facts: Mapping[str, Any], prototype: Mapping[str, Any]) -> Lines:
    """From the running ``main.py``, its model and its ``ds_config.json``."""
    engine, optimizer = facts["ds_config"], facts["ds_config"]["optimizer"]["params"]
    return [
        ("TTT steps", str(facts["length"]), f"{prototype['default_ttt_steps']} by default"),
        ("weights of the steps' losses", _numbers(facts["step_weights"]), _numbers(prototype["step_weights"])),
        ("gradients clipped", f"norm {engine['gradient_clipping']}", prototype["clip"]),
        ("betas", _numbers(optimizer["betas"]), _numbers(prototype["betas"])),
        ("weight decay", str(optimizer["weight_decay"]), str(prototype["weight_decay"])),
        ("schedule", _schedule(engine["scheduler"]), MISSING),
        ("precision", _precision(engine), MISSING),
        ("longest sample", str(facts["train_config"]["max_len"]), str(prototype["max_len"])),
        ("samples a step and process", _micro(engine), f"{prototype['default_bs']} by default"),
        *_refusals(facts),
        ("the script as it is", _outcome(facts["unmodified"], "runs"), MISSING),
        ("with the activation checkpointing it asks for", _checkpointed(facts), MISSING),
    ]


def hass_lines(facts: Mapping[str, Any], prototype: Mapping[str, Any]) -> Lines:
    """From the running ``main_hass.py``."""
    config = facts["train_config"]
    weights = ", ".join(f"{name} {config[name]}" for name in ("v_w", "p_w", "topk_w"))
    return [
        ("weights of the loss' terms", weights, prototype["terms"]),
        ("gradients clipped", f"value {facts['clip_value']}", prototype["clip"]),
        ("betas", _numbers([config["b1"], config["b2"]]), _numbers(prototype["betas"])),
        ("longest sample", str(config["max_len"]), str(prototype["max_len"])),
        ("noise", f"{config['noise']}, {config['std']}", prototype["noise"]),
        *_refusals(facts),
    ]


def _refusals(facts: Mapping[str, Any]) -> Lines:
    return [
        ("base of the rotary frequencies", f"{facts['rope_base']:g}", f"{facts['prototype']['rope_theta']:g}"),
        ("a draft config with llama3 scaling", _outcome(facts["config_refusal"], "is taken"), "is taken"),
    ]


def _precision(engine: Mapping[str, Any]) -> str:
    half = "float16" if str(engine["fp16"]["enabled"]).lower() == "true" else "float32"
    return f"{half}, ZeRO-{engine['zero_optimization']['stage']}"


def _checkpointed(facts: Mapping[str, Any]) -> str:
    if facts["checkpointed"]:
        return _outcome(facts["checkpointed"], "")
    lacking = facts["checkpointed_lacks"]
    return f"{len(lacking)} parameters get no gradient: {', '.join(lacking)}" if lacking else "the same gradients"


def _schedule(scheduler: Mapping[str, Any]) -> str:
    values = scheduler["params"]
    steps = f"{values['warmup_num_steps']} of {values['total_num_steps']}"
    return f"{scheduler['type']} to {values['warmup_max_lr']} in {steps}"


def _micro(engine: Mapping[str, Any]) -> str:
    return f"{engine['train_micro_batch_size_per_gpu']}, {engine['gradient_accumulation_steps']} accumulated"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _outcome(message: str, well: str) -> str:
    return f"stops: `{message.replace('|', '/').replace('`', '')}`" if message else well
