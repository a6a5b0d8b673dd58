"""The facts about a run that go into ``meta.json``."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file

from parity.prototypes.original.checkout import COMMIT, prototype_of
from parity.prototypes.original.recorder import Recorder
from parity.prototypes.original.request import OriginalRequest
from parity.prototypes.original.standins import natural_key
from parity.prototypes.original.watch import LoopWatch
from parity.prototypes.original.weights import Tensors, same
from parity.speed import peak_bytes

_ZIP = "504b0304"


def arguments_of(request: OriginalRequest, checkpoints: Path) -> list[str]:
    """The script's command line."""
    named = {
        "--basepath": request.verifier,
        "--configpath": request.draft_config,
        "--tmpdir": request.data,
        "--cpdir": checkpoints,
        "--lr": repr(request.lr),
        "--bs": request.bs,
        "--gradient-accumulation-steps": request.gradient_accumulation_steps,
        "--epoch": request.epoch,
        "--topk": request.topk,
        "--topk_w": f"{request.topk_w:g}",
        "--forward_num_total": request.forward_num_total,
    }
    return [str(part) for pair in named.items() for part in pair]


def describe_request(request: OriginalRequest) -> dict[str, Any]:
    """Which run this is, with which versions."""
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "accelerate", "numpy")}
    return {
        "case": request.case,
        "which": request.algorithm,
        "dtype": request.dtype,
        "commit": COMMIT,
        "torch": torch.__version__,
        **versions,
        "python": platform.python_version(),
        "module": prototype_of(request.algorithm).script,
        "draft_config": json.loads(request.draft_config.read_text()),
        "noise": request.noise,
        "shuffle": request.shuffle,
        "seed": request.seed,
        "redirect": request.redirect,
        "threads": request.threads,
    }


def describe_script(script: ModuleType, walked: list[str], hide: dict[str, str]) -> dict[str, Any]:
    """Settings and files as the script holds them; ``hide`` maps this machine's paths to placeholders."""
    return {
        "total_steps": script.total_steps,
        "warm_steps": script.warm_steps,
        "train_config": {name: hide_paths(value, hide) for name, value in script.train_config.items()},
        "samples_files": [Path(path).name for path in script.datapath],
        "os_walk_order_seen": walked,
    }


def hide_paths(value: Any, hide: dict[str, str]) -> Any:
    """Replace folders of this machine in a string by their placeholders."""
    if isinstance(value, str):
        for folder, placeholder in hide.items():
            value = value.replace(folder, placeholder)
    return value


def describe_timing(watch: LoopWatch, stopped_early: bool) -> dict[str, Any]:
    """Seconds, tokens and FLOPs per optimizer step, and the most memory the process held, in bytes.

    The first step includes warm-up, and counting where asked for.
    """
    return {
        "n_optimizer_steps": len(watch.clock.seconds),
        "step_seconds": watch.clock.seconds,
        "step_cpu_seconds": watch.clock.cpu_seconds,
        "step_tokens": watch.clock.tokens,
        "first_step_flops": watch.flops.total,
        "peak_bytes": peak_bytes(),
        "stopped_early": stopped_early,
    }


def describe_recording(recorder: Recorder, initial: Tensors, trainable: dict[str, bool], final: Tensors) -> Any:
    """What the recorder counted, and which parameters stayed where they were."""
    return {
        "sample_index_order": recorder.sample_indices,
        "n_micro_batches": len(recorder.rows),
        "first_step_micro_batches": recorder.first_micro_batches,
        "init_requires_grad": trainable,
        "init_dtype": {name: str(value.dtype) for name, value in initial.items()},
        "dtypes_seen": recorder.dtypes.seen,
        "params_without_grad": recorder.without_grad,
        "frozen_unchanged_after_training": [name for name in final if same(final[name], initial[name])],
    }


def describe_saved(checkpoints: Path, final: Tensors) -> dict[str, Any]:
    """What the script wrote: kind of every file, and whether the last weights are those of the end."""
    files = sorted(path for path in checkpoints.rglob("*") if path.is_file())
    saved = [_describe_file(path, checkpoints) for path in files]
    weights = sorted((path for path in files if _holds_draft(path)), key=natural_key)
    return {"saved": saved, "saved_check": _check_weights(weights[-1], checkpoints, final) if weights else None}


def _holds_draft(path: Path) -> bool:
    """``model<epoch>.safetensors`` of Eagle3, ``model.safetensors`` of HASS; its ``model_1`` is the verifier's head."""
    return path.name.startswith("model") and path.name != "model_1.safetensors"


def _describe_file(path: Path, root: Path) -> dict[str, Any]:
    with path.open("rb") as opened:
        magic = opened.read(4).hex()
    return {"file": path.relative_to(root).as_posix(), "magic": magic, "zip_pickle": magic == _ZIP}


def _check_weights(file: Path, root: Path, final: Tensors) -> dict[str, Any]:
    state = _load_weights(file)
    return {
        "last_file": file.relative_to(root).as_posix(),
        "keys": {name: [str(value.dtype), list(value.shape)] for name, value in state.items()},
        "equals_final_state": state.keys() == final.keys() and all(same(state[name], final[name]) for name in final),
    }


def _load_weights(file: Path) -> Tensors:
    """By content, not by name: Eagle3 writes pickles called ``.safetensors``, which ``torch.load`` refuses by path."""
    with file.open("rb") as opened:
        if opened.read(4).hex() != _ZIP:
            return load_file(file)
        opened.seek(0)
        state: Tensors = torch.load(opened, map_location="cpu", weights_only=True)
    return state
