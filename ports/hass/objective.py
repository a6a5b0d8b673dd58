"""The HASS objective: masked mean KL at every TTT step; gradients add up over the steps, the report is their mean.

With what Speculators' own trainer needs to run it: :func:`packed_batch` of its rows, :func:`train_forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ports.training.data import Batch, in_float32, make_sample, pack, rows_mask
from ports.training.loss import LossImplementation, Verifier
from ports.training.objective import Step, TTTObjective
from ports.verifier.logits import VerifierHead, applied, final_norm


class HassObjective(TTTObjective):
    """Of a ``HassDraftModel``.

    A step's input is detached, so one backward through the sum of the steps' losses adds up what a backward after each
    step would give. The draft speaks through the verifier's head weight alone, as it is served; the target is what the
    verifier's class makes of it.
    """

    def __init__(
        self,
        draft: Any,
        ttt_steps: int,
        topk: int = 10,
        implementation: LossImplementation = LossImplementation.FUSED,
        recompute: bool = False,
    ) -> None:
        super().__init__(draft, ttt_steps, draft.alignment, implementation, recompute)
        self.topk = topk
        self._head = _head(_name(draft))

    def unroll(self, batch: Batch) -> list[Step]:
        """See :meth:`ports.hass.model.HassDraftModel.unroll`."""
        inputs = batch["features"], batch["input_ids"], rows_mask(batch)
        return self.draft.unroll(*inputs, self.ttt_steps, self.recompute, batch["loss_mask"])

    def verifier(self, hidden: Tensor) -> Verifier:
        """The target over all of V; a head that is a product runs in autocast like the draft's, another in float32."""
        if self._head is not None:
            return Verifier(hidden, self._head.to(hidden.device))
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        return Verifier(hidden, self.draft.lm_head.weight.detach(), dtype)

    def output(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The norm before the head, and the verifier's frozen head."""
        return self.draft.lm_head_layernorm, self.draft.lm_head.weight

    def reported(self, losses: Tensor) -> Tensor:
        """Their mean."""
        return losses.detach().mean()


def _name(draft: Any) -> str | None:
    attached = draft.config.speculators_config
    return None if attached is None else attached.verifier.name_or_path


def _head(verifier: str | None) -> VerifierHead | None:
    """What gives the verifier's logits where that is more than a product with its head."""
    head = None if verifier is None else VerifierHead.load(verifier)
    return None if head is None or head.is_linear else head


@lru_cache(maxsize=1)  # Speculators' trainer comes for every batch
def _objective(draft: Any, ttt_steps: int) -> HassObjective:
    return HassObjective(draft, ttt_steps, topk=0)


@lru_cache(maxsize=1)
def _norm(verifier: str, device: torch.device) -> Any:
    return final_norm(verifier).to(device)


def packed_batch(
    draft: Any, states: Tensor, input_ids: Tensor, document_ids: Tensor, loss_mask: Tensor | None
) -> Batch | None:
    """The documents of a row, shifted in the draft's alignment; None of a row that is all padding.

    Args:
        draft: a ``HassDraftModel`` with a verifier.
        states: [1, T, h], the verifier's last hidden states before its final norm.
        input_ids: [1, T] int64, as they were said.
        document_ids: [1, T], from 0 on, -1 on padding.
        loss_mask: [1, T], 1 on the tokens of answers; default: on all.
    """
    norm = _norm(draft.config.speculators_config.verifier.name_or_path, states.device)
    hidden = applied(norm, states[0])
    mask = torch.ones_like(input_ids) if loss_mask is None else loss_mask
    lengths = torch.unique_consecutive(document_ids[0][document_ids[0] >= 0], return_counts=True)[1].tolist()
    fields = {"input_ids": input_ids[0], "loss_mask": mask[0], "hidden_state": hidden}
    split = {name: value[: sum(lengths)].split(lengths) for name, value in fields.items()}
    documents = [{name: parts[place] for name, parts in split.items()} for place in range(len(lengths))]
    samples = [make_sample(document, len(input_ids[0]), draft.alignment) for document in documents]
    if not samples:
        return None
    return in_float32({name: value.to(states.device) for name, value in pack(samples).items()})


def train_forward(draft: Any, batch: Batch | None, ttt_steps: int) -> tuple[list[Step], Tensor, dict[str, Tensor]]:
    """What Speculators' trainer expects of a forward: outputs, the loss to run backward on, and sums of metrics.

    The loss is the sum over the TTT steps, whose gradients the port adds up; it logs their mean.
    """
    if batch is None:
        nothing = sum(value.sum() for value in draft.parameters() if value.requires_grad) * 0.0
        return [], nothing, {"loss_sum": nothing.detach(), "loss_total": torch.ones_like(nothing)}
    objective = _objective(draft, ttt_steps)
    outcome = objective(batch)
    losses, one = outcome.step_losses.detach(), torch.ones_like(outcome.loss)
    metrics = {"loss_sum": losses.sum(), "loss_total": one}
    metrics |= {f"loss_{step}_sum": loss for step, loss in enumerate(losses)}
    metrics |= {f"loss_{step}_total": one for step in range(ttt_steps)}
    if not draft.training:  # what it accepts is worth another forward where nothing is learned
        for step, (reached, accepted) in enumerate(objective.chains(batch)[2:].T):
            metrics |= {f"cond_acc_{step}_sum": accepted, f"cond_acc_{step}_total": reached}
    return outcome.steps, outcome.backward_loss, metrics
