"""A trace from a recording on disk: what a prototype computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parity.errors import InputError
from parity.files import read_lines, read_tensors
from parity.prototypes.case import Case
from parity.prototypes.names import TO_NATIVE
from parity.trace import Point, Trace

PROTOTYPE_SEED = 0
"""The seed the prototypes set last before anything of the loop is drawn."""

LOGGED = ("train/ploss", "train/topkloss")
"""Metrics of HASS beyond loss, rate and hits."""

PARTS = (".ploss", ".topk_loss")
"""Summands of a step's loss in HASS that only its recording has step by step; the curve has their sums, ``LOGGED``."""

RENAMED_QUANTITIES = {"predict": "hidden", "kldiv_loss": "loss"}


def load_recorded(case: Case, run: str = "recorded") -> Trace:
    """The prototype's trace of ``case``, under Speculators' names.

    Raises:
        InputError: a file is missing or does not have the recordings' format.
    """
    native = TO_NATIVE[case.algorithm]
    initial = read_tensors(case.initial)
    stored = _with_aliases(case, read_tensors(case.directory / "first_step.safetensors"), case.meta.aliases, initial)
    tensors = {rename(name, native): value for name, value in stored.items() if not name.endswith(PARTS)}
    start = {native(name[5:]): value for name, value in initial.items() if name.startswith("init.")}
    tensors.update({f"init.{name}": _as_trained(case, start[name]) for name in start if name != "embed_tokens.weight"})
    final_file = case.directory / "final.safetensors"
    if final_file.exists():
        final = _with_aliases(case, read_tensors(final_file), case.meta.final_aliases, initial)
        tensors.update({f"final.{native(name)}": value for name, value in final.items()})
    file = case.directory / "trajectory.jsonl"
    curve = [_point(file, number, line) for number, line in enumerate(read_lines(file), 1)]
    extra = case.meta.model_extra or {}
    return Trace(
        run=run,
        case=case.name,
        dtype=case.dtype,
        tensors=tensors,
        curve=curve,
        prints=list(case.meta.prints),
        configuration=configuration(case),
        environment={name: extra.get(name) for name in ("torch", "transformers", "accelerate", "numpy", "python")},
    )


def rename(name: str, native: Callable[[str], str]) -> str:
    """A recorded tensor's name under the trace's conventions."""
    head, _, rest = name.partition(".")
    if head in ("after", "init"):
        return f"{head}.{native(rest)}"
    if rest.startswith("grad."):
        return f"{head}.grad.{native(rest[5:])}"
    stem, dot, quantity = name.rpartition(".")
    return f"{stem}{dot}{RENAMED_QUANTITIES.get(quantity, quantity)}"


def configuration(case: Case) -> dict[str, Any]:
    """What the prototype says it ran with."""
    config = case.meta.train_config
    return {
        "lr": case.lr,
        "bs": case.bs,
        "accumulation": case.accumulation,
        "epoch": case.epoch,
        "ttt_steps": case.ttt_steps,
        "noise": case.noise,
        "shuffle": case.shuffle,
        "total_steps": case.meta.total_steps,
        "warmup_steps": case.meta.warm_steps,
        "samples": list(case.meta.samples_files),
        "betas": [config.get("b1", 0.9), config.get("b2", 0.95)],
        "eps": 1e-8,
        "weight_decay": 0.01,
        "max_len": config.get("max_len", 8192),
        "seed": PROTOTYPE_SEED if case.seed is None else case.seed,
        "ttt_alignment": "prototype",
    }


def _as_trained(case: Case, value: Tensor) -> Tensor:
    """DeepSpeed rounds the weights to bfloat16 before it makes its float32 masters."""
    return value.to(torch.bfloat16).float() if case.dtype == "bf16ds" else value


def _with_aliases(
    case: Case, stored: Mapping[str, Tensor], aliases: Mapping[str, str], initial: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors left out of the file because they equal one that is stored elsewhere."""
    known = {**initial, **stored}
    for name, source in aliases.items():
        if source not in known:
            raise InputError(case.directory / "meta.json", f"alias of {name}", source, "a tensor that is stored")
    return {**stored, **{name: known[source] for name, source in aliases.items()}}


def _point(file: Path, number: int, line: Mapping[str, Any]) -> Point:
    try:
        return Point(
            epoch=int(line["epoch"]),
            loss=float(line["loss"]),
            step_losses=tuple(float(value) for value in line["kldiv_steps"]),
            grad_norm=_grad_norm(line),
            lr_used=float(line["lr_used"]),
            lr_after=float(line["lr_after"]),
            correct=int(line["cc"]),
            rows=int(line["ct"]),
            top=tuple(int(value) for value in line["topk_correct"]),
            stepped=bool(line["synced"]),
            logged={name: float(value) for name, value in (line.get("logdict") or {}).items() if name in LOGGED},
        )
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(file, f"line {number}", f"{type(error).__name__} {error}", "a trajectory line") from error


def _grad_norm(line: Mapping[str, Any]) -> float | None:
    clip = line.get("clip") or {}
    if clip.get("kind") == "norm":
        return float(clip["returned"])
    after_backward = line.get("grad_norm_after_backward") or [None]
    return None if after_backward[-1] is None else float(after_backward[-1])
