"""Cases that nobody recorded: written in the recordings' layout, so that every run reads them the same way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from speculators.utils.loading import load_model_layers
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from parity.fixtures.draws import uniform
from parity.prototypes.case import RecordedCase, read_case
from parity.prototypes.port import ALGORITHMS
from ports.training.records import natural_key
from ports.training.settings import linear_schedule_steps

NOISE = "noise_uniforms.safetensors"
OWN = {
    "eagle3": (3, 2, ("hidden_norm", "input_layernorm", "lm_head_layernorm")),
    "hass": (2, 1, ("embed_layernorm", "hidden_layernorm", "lm_head_layernorm")),
}
"""Beside the layer: what ``fc`` and what attention read, in hidden sizes, and the norms."""


def write_case(
    root: Path,
    fixture: Path,
    name: str = "synthetic",
    *,
    algorithm: str = "eagle3",
    dtype: str = "fp32",
    k: int = 3,
    bs: int = 2,
    accumulation: int = 1,
    epoch: int = 1,
    lr: float = 1e-3,
    noise: bool = False,
    shuffle: bool = False,
    seed: int = 0,
    initial: Path | None = None,
) -> RecordedCase:
    """A case folder below ``root`` for a fixture folder.

    Args:
        fixture: ``verifier/``, ``draft_<algorithm>.json``, ``data_<algorithm>/``, ``t2d.npy``, ``d2t.npy``.
        seed: of the sample order, the noise and, without ``initial``, the weights.
        initial: weights to start from, in a recording's form.
    """
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "fixture").symlink_to(fixture.resolve(), target_is_directory=True)
    files = sorted((fixture / f"data_{algorithm}").glob("*.ckpt"), key=lambda file: natural_key(Path(file.name)))
    order = sample_order(len(files), bs, epoch + 1, seed if shuffle else None)
    if noise:
        save_file(_uniforms(files, order, seed), folder / NOISE)
    weights = load_file(initial) if initial else initial_weights(fixture, algorithm, seed)
    save_file(weights, folder / "initial.safetensors")
    paths = {"configpath": f"FIXTURE/draft_{algorithm}.json", "tmpdir": f"FIXTURE/data_{algorithm}"}
    flags = {"lr": lr, "bs": bs, "gradient-accumulation-steps": accumulation, "epoch": epoch, "forward_num_total": k}
    total, warmup = linear_schedule_steps(len(files), epoch, bs * accumulation)
    meta = {
        "case": name,
        "which": algorithm,
        "dtype": dtype,
        "argv": [word for flag, value in {**paths, **flags}.items() for word in (f"--{flag}", str(value))],
        "noise": noise,
        "shuffle": shuffle,
        "seed": seed,
        "total_steps": total,
        "warm_steps": warmup,
        "sample_index_order": order,
        "samples_files": [file.name for file in files],
        "initial": "initial.safetensors",
        "prints": [],
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return read_case(folder)


def sample_order(count: int, bs: int, passes: int, seed: int | None) -> list[int]:
    """Whole batches in file order, or by a fresh permutation every pass, the same on every machine."""
    kept = count // bs * bs
    if seed is None:
        return list(range(kept)) * passes
    ranks = [uniform(seed, f"order{number}", (count,)) for number in range(passes)]
    return [int(index) for rank in ranks for index in np.argsort(rank, kind="stable")[:kept]]


def initial_weights(fixture: Path, algorithm: str, seed: int) -> dict[str, Tensor]:
    """Weights to start from, under the prototype's names: matrices of variance 1 / width, norms around 1."""
    config = json.loads((fixture / f"draft_{algorithm}.json").read_text())
    weights = {f"init.{name}": _draw(seed, name, shape) for name, shape in shapes(config, algorithm).items()}
    stored = load_model_layers(["lm_head.weight", "model.embed_tokens.weight"], str(fixture / "verifier"))
    embedding = stored["model.embed_tokens.weight"].float()
    head = stored.get("lm_head.weight", embedding).float().clone()  # apart, where they are tied
    verifier = {"verifier.lm_head.weight": head, "verifier.embed_tokens.weight": embedding}
    if not ALGORITHMS[algorithm].owns_vocabulary:
        return {**weights, **verifier}
    t2d = torch.from_numpy(np.load(fixture / "t2d.npy")).bool()
    d2t = torch.from_numpy(np.load(fixture / "d2t.npy")).long()
    return {**weights, **verifier, "init.lm_head.weight": head[t2d].clone(), "t2d": t2d, "d2t": d2t}


def shapes(config: dict[str, Any], algorithm: str) -> dict[str, tuple[int, ...]]:
    """Of what a draft trains but for its head: Llama's layer without its first norm, ``fc``, and norms."""
    h, (read, attended, norms) = config["hidden_size"], OWN[algorithm]
    with torch.device("meta"):
        layer = LlamaDecoderLayer(LlamaConfig.from_dict(dict(config)), 0)
    named = {f"layers.0.{name}": tuple(value.shape) for name, value in layer.named_parameters()}
    del named["layers.0.input_layernorm.weight"]
    for name in (f"layers.0.self_attn.{each}_proj.weight" for each in "qkv"):
        named[name] = named[name][0], attended * h
    return {"fc.weight": (h, read * h), **named, **{f"{name}.weight": (h,) for name in norms}}


def _draw(seed: int, name: str, shape: Sequence[int]) -> Tensor:
    values = torch.from_numpy(uniform(seed, name, shape)).float()
    return 1 + 0.2 * values if len(shape) == 1 else values * (3 / shape[1]) ** 0.5


def _uniforms(files: Sequence[Path], order: Sequence[int], seed: int) -> dict[str, Tensor]:
    """One draw [1, T, F] in [0, 1) per visit, as the prototypes' loader makes them."""
    sizes = [torch.load(file, weights_only=True)["hidden_state"].shape for file in files]
    draws = (uniform(seed, f"noise{visit}", (1, *sizes[index])) for visit, index in enumerate(order))
    return {f"u{visit:05d}": torch.from_numpy(draw).float() / 2 + 0.5 for visit, draw in enumerate(draws)}
