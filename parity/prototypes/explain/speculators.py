"""EAGLE's ``traineagle3`` as Speculators' own Eagle3 forward with causes put in, on one sample.

Shapes: T positions, h hidden size, V verifier vocabulary, D draft vocabulary. Speculators' index q at step s is the
prototypes' position p = q + s, and EAGLE's index q.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor, nn

from parity.environment import quietly
from parity.prototypes.case import Case
from parity.prototypes.explain.eagle import LOSS_CAUSES, Batch, named, step_losses, weighted
from parity.prototypes.explain.study import Cause
from parity.prototypes.port import load_initial, settings_for
from parity.prototypes.reference.loop import prepare
from ports.eagle3 import train

CAUSES = (
    Cause("residual", "the residual stream starts at the hidden state itself; Speculators' `norm_before_residual` off"),
    Cause("rope", "rotary frequencies have a fixed base and no scaling, whatever the draft config says"),
    Cause("mask", "the loss mask is l[p], the last position included, not l[p + 1]"),
    Cause("head", "the draft's head is trained; Speculators freezes it"),
    *LOSS_CAUSES,
)


def speculators(case: Case, batch: Batch, facts: Mapping[str, Any], causes: frozenset[str]) -> dict[str, Tensor]:
    """Tensors of the sample with the given causes in; without any, the loss is Speculators' own."""
    draft = build(case, facts, causes)
    hidden, logits, own = forward(draft, batch, case.ttt_steps)
    mask = batch.raw_mask if "mask" in causes else next_mask(batch)
    losses = step_losses(logits, batch.target_logits, draft.t2d, mask, causes, leading=False)
    total = weighted(losses, facts, causes) if causes else own
    total.backward()
    parameters = draft.named_parameters()
    grads = {f"grad.{name}": value.grad for name, value in parameters if value.grad is not None}
    return {**named(hidden, logits, losses, total, batch.real), **grads}


def formula(case: Case, batch: Batch, facts: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the loss must be without causes: the formula's steps, summed. Speculators reports its total alone."""
    with torch.no_grad():
        _, logits, _ = forward(build(case, facts, frozenset()), batch, case.ttt_steps)
    losses = step_losses(logits, batch.target_logits, prepare(case).t2d, next_mask(batch), frozenset(), leading=False)
    return {"loss": torch.stack(losses).sum().reshape(1)}


def next_mask(batch: Batch) -> Tensor:
    """l[p + 1], as Speculators has it."""
    return torch.cat([batch.mask[:, 1:], torch.zeros_like(batch.mask[:, :1])], dim=1)


def build(case: Case, facts: Mapping[str, Any], causes: frozenset[str]) -> Any:
    """Speculators' model on the case's initial weights. The files hold post-norm targets: its norm is an identity."""
    with tempfile.TemporaryDirectory() as folder, quietly():
        file = Path(folder) / "draft.json"
        plain_rope = {"rope_theta": facts["rope_base"], "rope_scaling": None} if "rope" in causes else {}
        file.write_text(json.dumps({**json.loads(case.configpath.read_text()), **plain_rope}))
        settings: Any = settings_for(case, Path(folder) / "checkpoints", configpath=str(file))
        ours = train.build(settings)
    load_initial(ours, case)
    config = copy.deepcopy(ours.config)
    config.transformer_layer_config._attn_implementation = "sdpa"  # eager sees wrong keys in Speculators 0.8.1
    config.norm_before_residual = "residual" not in causes
    draft = Eagle3DraftModel(config)
    draft.load_state_dict(ours.state_dict(), strict=False)
    draft.verifier_norm = nn.Identity()
    draft.lm_head.requires_grad_("head" in causes)
    return draft


def forward(draft: Any, batch: Batch, ttt_steps: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Hidden states and logits of every step at the prototypes' positions, zeros at p < s; and Speculators' loss."""
    hidden: list[Tensor] = []
    logits: list[Tensor] = []
    hooks = [
        draft.layers[-1].register_forward_hook(lambda _module, _inputs, out: hidden.append(_first(out))),
        draft.lm_head.register_forward_hook(lambda _module, _inputs, out: logits.append(out)),
    ]
    try:
        _, loss, _ = draft(
            hidden_states=batch.features,
            input_ids=batch.input_ids,
            document_ids=torch.zeros_like(batch.input_ids),
            loss_mask=next_mask(batch).bool(),
            verifier_last_hidden_states=batch.target,
            ttt_steps=ttt_steps,
            loss_config=resolve_loss_config("kl_div", "eager"),
        )
    finally:
        for hook in hooks:
            hook.remove()
    return _at_positions(hidden), _at_positions(logits), loss


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _at_positions(values: list[Tensor]) -> list[Tensor]:
    """From index q to position p = q + s."""
    return [nn.functional.pad(value[:, : value.shape[1] - s], (0, 0, s, 0)) for s, value in enumerate(values)]
