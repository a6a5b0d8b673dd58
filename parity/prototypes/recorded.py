"""What a prototype computed once: its trace from a recording on disk, and its order and noise played again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from parity.errors import InputError
from parity.files import read_lines, read_tensors
from parity.prototypes.case import SETTINGS, TO_NATIVE, RecordedCase
from parity.trace import Point, Trace

PROTOTYPE_SEED = 0
"""The seed the prototypes set last before anything of the loop is drawn."""

FROM_VERIFIER = ("embed_tokens.weight", "lm_head.weight")
"""Initial weights that a recording may leave out, since the draft takes them from the verifier."""

EMBEDDING = "init.embed_tokens.weight"
"""Which no prototype trains."""

LOGGED = ("train/ploss", "train/topkloss")
"""Metrics of HASS beyond loss, rate and hits."""

PARTS = (".ploss", ".topk_loss")
"""Summands of a step's loss in HASS that only its recording has step by step; the curve has their sums, ``LOGGED``."""

VERSIONS = ("torch", "transformers", "accelerate", "numpy", "python")

MASTERS = "final.fp32_master_flat"
"""DeepSpeed's, of all parameters in one, which no other run has."""

RENAMED_QUANTITIES = {"predict": "hidden", "kldiv_loss": "loss"}


def load_recorded(case: RecordedCase, run: str = "recorded") -> Trace:
    """The prototype's trace of ``case``, under Speculators' names.

    Raises:
        InputError: a file is missing or does not have the recordings' format.
    """
    initial = read_tensors(case.initial)
    stored, final = read_tensors(case.directory / "first_step.safetensors"), case.directory / "final.safetensors"
    aliases = dict(case.meta.aliases)
    if final.exists():
        stored |= {f"final.{name}": value for name, value in read_tensors(final).items()}
        aliases |= {f"final.{name}": source for name, source in case.meta.final_aliases.items()}
    stored |= _aliased(case, aliases, {**initial, **stored})
    stored.pop(MASTERS, None)
    held = {name: value for name, value in initial.items() if name.startswith("init.") and name != EMBEDDING}
    stored |= {name: value.bfloat16().float() for name, value in held.items()} if case.dtype == "bf16ds" else held
    file = case.directory / "trajectory.jsonl"
    curve = [_point(file, number, line) for number, line in enumerate(read_lines(file), 1)]
    extra, native = case.meta.model_extra or {}, TO_NATIVE[case.algorithm]
    return Trace(
        run=run,
        case=case.name,
        dtype=case.dtype,
        tensors={rename(name, native): value for name, value in stored.items() if not name.endswith(PARTS)},
        curve=curve,
        prints=list(case.meta.prints),
        configuration=configuration(case),
        environment={name: extra.get(name) for name in VERSIONS},
    )


def rename(name: str, native: Callable[[str], str]) -> str:
    """A recorded tensor's name under the trace's conventions."""
    head, _, rest = name.partition(".")
    if head in ("after", "init", "final"):
        return f"{head}.{native(rest)}"
    if rest.startswith("grad."):
        return f"{head}.grad.{native(rest[5:])}"
    stem, dot, quantity = name.rpartition(".")
    return f"{stem}{dot}{RENAMED_QUANTITIES.get(quantity, quantity)}"


def configuration(case: RecordedCase) -> dict[str, Any]:
    """What the prototype says it ran with."""
    config = case.meta.train_config
    return {
        **{name: getattr(case, name) for name in SETTINGS},
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


def observed_settings(trace: Trace) -> dict[str, Any]:
    """What a run did, by its own first batch and curve, whatever it was told; nothing without a curve."""
    curve, ids = trace.curve, trace.tensors.get("mb0.batch.input_ids")
    if not curve:
        return {}
    stepped = [number for number, point in enumerate(curve, 1) if point.stepped]
    return {
        "run.samples of a batch": None if ids is None else len(ids),
        "run.batches of a step": stepped[0] if stepped else None,
        "run.batches": len(curve),
        "run.passes": len({point.epoch for point in curve}),
        "run.TTT steps": len(curve[0].step_losses),
    }


def start_of(case: RecordedCase, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a run trains, as it starts, of what the case's initial file holds, by the prototype's names.

    DeepSpeed rounds the weights to bfloat16 before it makes its float32 masters.
    """
    named = {name[5:]: value for name, value in stored.items() if name.startswith("init.")}
    named.pop("embed_tokens.weight", None)
    rounded = case.dtype == "bf16ds"
    return {name: value.to(torch.bfloat16).float() if rounded else value for name, value in named.items()}


def refuse_misfits(file: Path, stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise InputError unless initial weights have the names and shapes of a draft's own, ``FROM_VERIFIER`` aside."""
    for name in sorted({*stored, *own} - ({*FROM_VERIFIER} - {*stored})):
        found, expected = (tuple(held[name].shape) if name in held else "none" for held in (stored, own))
        if found != expected:
            raise InputError(file, f"init.{name}", found, expected)


def _aliased(case: RecordedCase, aliases: Mapping[str, str], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors left out of the files because they equal one that is stored elsewhere."""
    for name, source in aliases.items():
        if source not in known:
            raise InputError(case.directory / "meta.json", f"alias of {name}", source, "a tensor that is stored")
    return {name: known[source] for name, source in aliases.items()}


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
    """Before clipping: what clipping by norm returned, else what was measured."""
    clip, measured = line.get("clip") or {}, line.get("grad_norm_after_backward") or [None]
    norm = clip["returned"] if clip.get("kind") == "norm" else measured[-1]
    return None if norm is None else float(norm)


class ReplaySampler(Sampler[int]):
    """Yields the recorded sample indices, one pass's worth at every iteration.

    A pass ends where the recorded one did: whole batches only.
    """

    def __init__(self, order: Sequence[int], per_pass: int) -> None:
        self.left, self.per_pass = iter(order), per_pass

    def __len__(self) -> int:
        return self.per_pass

    def __iter__(self) -> Iterator[int]:
        return islice(self.left, self.per_pass)


def recorded_noise(file: Path) -> Callable[[Tensor], Tensor]:
    """Hands out the recorded uniforms in loading order, in place of ``torch.rand_like``."""
    stored = read_tensors(file)
    if wrong := [name for name in stored if not name[1:].isdecimal()]:
        raise InputError(file, "noise", wrong[0], "draws named u and a number")
    left = iter(sorted(stored, key=lambda name: int(name[1:])))

    def draw(features: Tensor) -> Tensor:
        name = next(left, None)
        if name is None:
            raise InputError(file, "noise", f"{len(stored)} draws", "one more")
        if stored[name].shape != features.shape:
            found, expected = (f"shape {tuple(value.shape)}" for value in (stored[name], features))
            raise InputError(file, name, found, expected)
        return stored[name]

    return draw


def samples_per_pass(case: RecordedCase) -> int:
    """How many samples a pass visits: incomplete batches are dropped."""
    return len(case.meta.samples_files) // case.bs * case.bs
