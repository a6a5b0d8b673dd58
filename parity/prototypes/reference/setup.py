"""The parts of a case that the reference computes with."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parity.errors import InputError
from parity.files import read_object, read_tensors
from parity.prototypes.case import TO_NATIVE, Case
from parity.prototypes.reference import eagle3, hass
from parity.prototypes.reference.steps import Unrolled
from parity.step import Clip, global_norm

CLIP = {"eagle3": Clip("norm", 1.0), "hass": Clip("value", 0.5)}


@dataclass
class Setup:
    """All in ``dtype``; ``masters`` are float32 or wider. With ``autocast`` the weights stay as they are."""

    case: Case
    dtype: torch.dtype
    config: dict[str, Any]
    masters: dict[str, Tensor]
    head: Tensor
    t2d: Tensor
    frozen: dict[str, Tensor] = field(default_factory=dict)
    autocast: bool = False

    def weights(self) -> dict[str, Tensor]:
        """The parameters as leaves in the computing dtype, ready for a backward."""
        leaves = {name: value.detach().to(self.dtype).requires_grad_() for name, value in self.masters.items()}
        return {**leaves, **self.frozen}

    def forward(self, weights: Mapping[str, Tensor], batch: Mapping[str, Tensor], **options: Any) -> Unrolled:
        """The algorithm's forward; ``options`` are ``own_position``, ``tap`` and ``project_once``."""
        batch, k = _cast(batch, self.dtype), self.case.ttt_steps
        with self.precision():
            if self.case.algorithm == "hass":
                return hass.forward(weights, self.config, batch, self.head, k, self.case.topk, **options)
            return eagle3.forward(weights, self.config, batch, self.head, self.t2d, k, **options)

    def precision(self) -> AbstractContextManager[Any]:
        """bfloat16 autocast where the case was launched with it."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)

    def clip(self, gradients: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """Clipped as the algorithm does, and the global norm before."""
        return CLIP[self.case.algorithm](gradients), global_norm(gradients.values())


def prepare(case: Case, dtype: torch.dtype = torch.float32) -> Setup:
    """Read weights, config and vocabulary map of a case.

    ``dtype`` is that of the computation. For a case under autocast bfloat16 means: float32 weights, autocast on.
    """
    native = TO_NATIVE[case.algorithm]
    stored = read_tensors(case.initial)
    autocast = case.dtype == "bf16" and dtype == torch.bfloat16
    dtype = torch.float32 if autocast else dtype
    wide = torch.promote_types(dtype, torch.float32)
    weights = {native(name[5:]): value for name, value in stored.items() if name.startswith("init.")}
    for name in ("verifier.lm_head.weight", "verifier.embed_tokens.weight"):
        if name not in stored:
            raise InputError(case.initial, name, "missing", "a tensor")
    embedding = weights.pop("embed_tokens.weight", stored["verifier.embed_tokens.weight"])
    if case.dtype == "bf16ds":
        weights = {name: value.to(torch.bfloat16) for name, value in weights.items()}
    return Setup(
        case=case,
        dtype=dtype,
        config=read_object(case.configpath),
        masters={name: value.to(wide) for name, value in weights.items()},
        head=stored["verifier.lm_head.weight"].to(wide),
        t2d=stored["t2d"].bool() if "t2d" in stored else torch.ones(0, dtype=torch.bool),
        frozen={"embed_tokens.weight": embedding.to(dtype)},
        autocast=autocast,
    )


def _cast(batch: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    wide = torch.promote_types(dtype, torch.float32)
    return {name: value.to(wide) if value.is_floating_point() else value for name, value in batch.items()}
