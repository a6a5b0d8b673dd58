"""Step ``files``: a draft's directory, looked at before anything of it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ports.check.findings import Finding, fault, ok
from ports.evaluate.drafter import open_draft, untrained
from ports.files import read_json
from ports.training.checkpoint import WEIGHTS
from ports.training.saving import read_weights
from ports.verifier.logits import VerifierHead

LIKE = 0.5
"""Mean cosine of rows that began as the verifier's; rows of a random matrix have about 0."""

ROWS = 1024
"""Of a table, that are compared."""

VLLM_ASSUMES = {"norm_before_residual": True}
"""What vLLM takes of an Eagle3 config that does not say it, where Speculators takes the other."""

ENDS = ("embed_tokens", "embed", "lm_head")
"""Tables that begin as the verifier's."""


def look_at_files(directory: Path, verifier: str | None) -> tuple[Any, Finding]:
    """The opened draft, and what its files have.

    Raises:
        InputError: a tensor, map, config or verifier that :func:`ports.evaluate.drafter.open_draft` refuses.
    """
    model, weights = open_draft(directory, verifier), read_weights(directory / WEIGHTS)
    named = model.config.speculators_config.verifier.name_or_path
    empty = [name for name, value in weights.items() if value.is_floating_point() and not bool(value.any())]
    if empty:
        return model, fault("files", f"{', '.join(empty)}: all zero", "nothing filled it: convert or train it again")
    own = _own_ends(model, weights, named)
    for name, (cosine, elsewhere) in own.items():
        if elsewhere is not None:
            figure = f"{name}: rows are like the verifier's of the tokens {elsewhere:+d} from those of its map"
            return model, fault("files", figure, "use the d2t and t2d that the draft was trained with", **_told(own))
        if name != "lm_head" and cosine < LIKE:
            figure = f"{name}: mean cosine {cosine:.2f} with the verifier's rows, at least {LIKE} of one trained on it"
            advice = "a converter left it random, or the draft is of another verifier: save it from the verifier's"
            return model, fault("files", figure, advice, **_told(own))
    unsaid = _unsaid(directory, model)
    if unsaid:
        return model, fault("files", unsaid[0], unsaid[1], **_told(own))
    size = model.config.speculators_config.proposal_methods[0].speculative_tokens
    figure = f"{len(weights)} tensors of {named}, {size} speculative tokens"
    return model, ok("files", figure, tensors=len(weights), speculative_tokens=size, **_told(own))


def _told(own: dict[str, tuple[float, int | None]]) -> dict[str, float]:
    return {f"cosine_{name}": round(cosine, 4) for name, (cosine, _) in own.items()}


def _own_ends(model: Any, weights: dict[str, Tensor], verifier: str) -> dict[str, tuple[float, int | None]]:
    """By table: its rows' mean cosine with the verifier's, and where a map that is shifted would fit far better."""
    fresh, found = untrained(model), dict[str, tuple[float, int | None]]()
    for name in ENDS:
        key = f"{name}.weight"
        if key in weights and weights[key].shape == fresh.state_dict()[key].shape:
            found[name] = _cosine(weights[key], fresh.state_dict()[key]), None
    if "lm_head" in found and getattr(model, "t2d", None) is not None:
        head, said = VerifierHead.load(verifier).weight, model.t2d.nonzero()[:, 0]
        moved = {by: _cosine(weights["lm_head.weight"], head[(said + by) % len(head)]) for by in (-1, 1)}
        best = max(moved, key=moved.__getitem__)
        found["lm_head"] = found["lm_head"][0], best if moved[best] > found["lm_head"][0] + LIKE else None
    return found


def _cosine(rows: Tensor, others: Tensor) -> float:
    some = torch.linspace(0, len(rows) - 1, min(ROWS, len(rows))).long()
    return float(F.cosine_similarity(rows[some].float(), others[some].float(), dim=-1).mean())


def _unsaid(directory: Path, model: Any) -> tuple[str, str] | None:
    """What the config leaves to programs that do not take the same."""
    source = read_json(directory / "config.json", "config", "a Speculators config")
    for name, assumed in VLLM_ASSUMES.items() if model.config.speculators_model_type == "eagle3" else ():
        if name not in source and getattr(model.config, name) != assumed:
            return f"config.json does not say {name}, and vLLM takes {assumed}", f"write {name} into it"
    return None
