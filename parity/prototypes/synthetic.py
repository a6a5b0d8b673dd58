"""Cases that nobody recorded: written in the recordings' layout, so that every run reads them the same way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from speculators.utils.loading import load_model_layers
from torch import Tensor

from parity.fixtures.draws import uniform
from parity.prototypes.algorithms import ALGORITHMS
from parity.prototypes.case import Case, read_case
from ports.training.data.records import natural_key
from ports.training.settings import linear_schedule_steps


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
) -> Case:
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
    order = sample_order(len(files), bs, epoch + 1, seed) if shuffle else plain_order(len(files), bs, epoch + 1)
    if noise:
        save_file(_uniforms(files, order, seed), folder / "noise_uniforms.safetensors")
    weights = load_file(initial) if initial else initial_weights(fixture, algorithm, seed)
    save_file(weights, folder / "initial.safetensors")
    flags = {"lr": lr, "bs": bs, "gradient-accumulation-steps": accumulation, "epoch": epoch, "forward_num_total": k}
    (folder / "meta.json").write_text(
        json.dumps(_meta(name, algorithm, dtype, fixture, flags, files, order, noise, shuffle, seed))
    )
    return read_case(folder)


def plain_order(count: int, bs: int, passes: int) -> list[int]:
    """Every pass in file order, incomplete batches dropped."""
    return list(range(count // bs * bs)) * passes


def sample_order(count: int, bs: int, passes: int, seed: int) -> list[int]:
    """A fresh permutation every pass, the same on every machine."""
    ranks = [uniform(seed, f"order{number}", (count,)) for number in range(passes)]
    return [int(index) for rank in ranks for index in np.argsort(rank, kind="stable")[: count // bs * bs]]


def initial_weights(fixture: Path, algorithm: str, seed: int) -> dict[str, Tensor]:
    """Weights to start from, under the prototype's names: matrices of variance 1 / width, norms around 1."""
    config = json.loads((fixture / f"draft_{algorithm}.json").read_text())
    weights = {f"init.{name}": _draw(seed, name, shape) for name, shape in SHAPES[algorithm](config).items()}
    head, embedding = _verifier_weights(fixture / "verifier")
    verifier = {"verifier.lm_head.weight": head, "verifier.embed_tokens.weight": embedding}
    if not ALGORITHMS[algorithm].owns_vocabulary:
        return {**weights, **verifier}
    t2d = torch.from_numpy(np.load(fixture / "t2d.npy")).bool()
    d2t = torch.from_numpy(np.load(fixture / "d2t.npy")).long()
    return {**weights, **verifier, "init.lm_head.weight": head[t2d].clone(), "t2d": t2d, "d2t": d2t}


def _draw(seed: int, name: str, shape: Sequence[int]) -> Tensor:
    values = torch.from_numpy(uniform(seed, name, shape)).float()
    return 1 + 0.2 * values if len(shape) == 1 else values * (3 / shape[1]) ** 0.5


def _eagle3_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    h = config["hidden_size"]
    norms = ("hidden_norm", "input_layernorm", "lm_head_layernorm")
    return {"fc.weight": (h, 3 * h), **_layer_shapes(config, 2 * h), **{f"{name}.weight": (h,) for name in norms}}


def _hass_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    h = config["hidden_size"]
    norms = ("embed_layernorm", "hidden_layernorm", "lm_head_layernorm")
    return {"fc.weight": (h, 2 * h), **_layer_shapes(config, h), **{f"{name}.weight": (h,) for name in norms}}


def _layer_shapes(config: dict[str, Any], width: int) -> dict[str, tuple[int, ...]]:
    """The decoder layer, whose attention reads ``width`` features."""
    h, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    dim = config.get("head_dim") or h // heads
    attention = {"q_proj": heads * dim, "k_proj": config["num_key_value_heads"] * dim}
    attention["v_proj"] = attention["k_proj"]
    return {
        **{f"layers.0.self_attn.{name}.weight": (size, width) for name, size in attention.items()},
        "layers.0.self_attn.o_proj.weight": (h, heads * dim),
        **{f"layers.0.mlp.{name}.weight": (inner, h) for name in ("gate_proj", "up_proj")},
        "layers.0.mlp.down_proj.weight": (h, inner),
        "layers.0.post_attention_layernorm.weight": (h,),
    }


SHAPES: dict[str, Callable[[dict[str, Any]], dict[str, tuple[int, ...]]]] = {
    "eagle3": _eagle3_shapes,
    "hass": _hass_shapes,
}


def _verifier_weights(verifier: Path) -> tuple[Tensor, Tensor]:
    weights = load_model_layers(["lm_head.weight", "model.embed_tokens.weight"], str(verifier))
    embedding = weights["model.embed_tokens.weight"].float()
    return weights.get("lm_head.weight", embedding).float().clone(), embedding  # apart, where they are tied


def _uniforms(files: Sequence[Path], order: Sequence[int], seed: int) -> dict[str, Tensor]:
    """One draw [1, T, F] in [0, 1) per visit, as the prototypes' loader makes them."""
    shapes = [torch.load(file, weights_only=True)["hidden_state"].shape for file in files]
    draws = (uniform(seed, f"noise{visit}", (1, *shapes[index])) for visit, index in enumerate(order))
    return {f"u{visit:05d}": torch.from_numpy(draw).float() / 2 + 0.5 for visit, draw in enumerate(draws)}


def _meta(
    name: str,
    algorithm: str,
    dtype: str,
    fixture: Path,
    flags: dict[str, float],
    files: Sequence[Path],
    order: list[int],
    noise: bool,
    shuffle: bool,
    seed: int,
) -> dict[str, Any]:
    total, warmup = linear_schedule_steps(
        len(files), int(flags["epoch"]), int(flags["bs"] * flags["gradient-accumulation-steps"])
    )
    paths = {"configpath": f"FIXTURE/draft_{algorithm}.json", "tmpdir": f"FIXTURE/data_{algorithm}"}
    return {
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
        "draft_config": json.loads((fixture / f"draft_{algorithm}.json").read_text()),
    }
