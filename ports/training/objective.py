"""A draft with its loss as one module: what the objectives of all algorithms share.

Shapes: B batch, T positions, h hidden size, D the vocabulary the draft speaks, k TTT steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from ports.numerics import wide_dtype
from ports.training.alignment import Alignment
from ports.training.data import Batch, rows_mask
from ports.training.loss import (
    ROWS,
    Hits,
    LossImplementation,
    Scores,
    Verifier,
    count_chains,
    eager_scores,
    fused_scores,
    kl_sum,
    mean_over,
)
from ports.training.masks import documents_of, rows_in_loss

Head = Callable[[Tensor], Tensor]
"""From a step's hidden states [B, T, h] to its logits [B, T, D]."""


@dataclass
class Step:
    """One TTT step: ``hidden_in`` and ``hidden`` [B, T, h] before and after the layers.

    The fused loss never makes all logits, so they are computed when somebody asks, in the precision of the forward.
    """

    hidden_in: Tensor
    hidden: Tensor
    head: Head

    @cached_property
    def logits(self) -> Tensor:
        """[B, T, D]."""
        return self.head(self.hidden)


def in_this_precision(head: Head, device: str) -> Head:
    """``head`` under the autocast that is in force now, whenever it is called."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def call(hidden: Tensor) -> Tensor:
        with torch.autocast(device, dtype, enabled=enabled):
            return head(hidden)

    return call


def next_hidden(hidden: Tensor, out: Tensor, first: Tensor | None = None) -> Tensor:
    """The next step's input [B, T, h]: the output moved one position to the right, the first position unchanged.

    ``first`` [1, T] bool marks the first position of every document of a packed row. Default: there is one a row.
    """
    moved = torch.cat([hidden[:, :1], out[:, :-1]], dim=1)
    return moved if first is None else torch.where(first[..., None], hidden, moved)


def step_rows(loss_mask: Tensor, step: int, alignment: Alignment, positions: Tensor | None = None) -> Tensor:
    """The loss mask [B, T] of TTT step ``step``: unchanged (prototype), or without the rows p < step (chain).

    ``positions`` [1, T] are p, which a packed row counts from 0 in every document. Default: the columns.
    """
    if alignment is Alignment.PROTOTYPE or step == 0:
        return loss_mask
    if positions is None:
        positions = torch.arange(loss_mask.shape[1], device=loss_mask.device)[None]
    return loss_mask * (positions >= step)


@dataclass
class Outcome:
    """One micro-batch: the loss to run backward on, what is reported, and the tensors it came from.

    ``step_losses`` [k] are still attached to the graph, ``loss`` is not. ``target`` has ``logits`` and
    ``probabilities`` [B, T, D] of the verifier. ``scores`` are the sums behind the means, ``extra`` metrics that only
    some objectives log.
    """

    backward_loss: Tensor
    loss: Tensor
    step_losses: Tensor
    hits: Hits
    target: Any
    steps: list[Step]
    scores: Scores
    extra: dict[str, Tensor] = field(default_factory=dict)


torch.export.register_dataclass(Outcome)
"""FSDP2 prepares the backward of the tensors that a forward returns, and torch 2.9 finds none in other dataclasses."""


class TTTObjective(nn.Module):
    """One module, so that DDP and DeepSpeed see a single forward.

    An algorithm says how its draft unrolls, what the target is, what turns hidden states into logits, and which number
    stands for the steps' losses. With ``recompute`` no activations of the draft's layers are kept.
    """

    topk = 0
    """How many of the verifier's likeliest tokens the logged cross-entropy covers; 0 logs none."""

    def __init__(
        self,
        draft: Any,
        ttt_steps: int,
        alignment: Alignment,
        implementation: LossImplementation,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.draft = draft
        self.ttt_steps = ttt_steps
        self.alignment = alignment
        self.implementation = implementation

    def unroll(self, batch: Batch) -> list[Step]:
        """The draft's k steps on a micro-batch."""
        raise NotImplementedError

    def verifier(self, hidden: Tensor) -> Verifier:
        """The target distribution from the verifier's last hidden state [B, T, h]."""
        raise NotImplementedError

    def output(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The draft's norm and the weight [D, h] of its head."""
        raise NotImplementedError

    def target_tokens(self, hidden: Tensor) -> Tensor:
        """The verifier's likeliest token [N] after rows [N, h] of its last hidden state, as an id of the draft.

        -1 stands for one that the draft cannot say.
        """
        return self.verifier(hidden).logits.argmax(-1)

    def total(self, losses: Tensor) -> Tensor:
        """The one loss to run backward on, from those of the k steps: a sum with fixed weights."""
        return losses.sum()

    def reported(self, losses: Tensor) -> Tensor:
        """The one loss that stands for those of the k steps."""
        raise NotImplementedError

    def after_cast(self) -> None:
        """Restore what a cast of the module must not touch; called once everything is prepared."""

    def masks(self, batch: Batch) -> list[Tensor]:
        """[B, T] for each step, 1 on its rows in the loss."""
        positions = documents_of(rows_mask(batch)).positions
        return [step_rows(batch["loss_mask"], step, self.alignment, positions) for step in range(self.ttt_steps)]

    def rows(self, batch: Batch) -> Tensor:
        """Rows in the loss at every TTT step, [k] int64."""
        return torch.stack([mask.sum() for mask in self.masks(batch)])

    def score(self, steps: list[Step], batch: Batch, verifier: Verifier) -> Scores:
        """Sums over the rows in the loss, in the implementation that was chosen."""
        masks = self.masks(batch)
        if self.implementation is LossImplementation.EAGER:
            return eager_scores([step.logits for step in steps], masks, verifier, self.topk)
        return fused_scores([step.hidden for step in steps], masks, verifier, *self.output(), self.topk)

    @torch.no_grad()
    def chains(self, batch: Batch) -> Tensor:
        """What chains would have accepted on a batch that was made for chain alignment.

        Returns:
            [4, k] float64 (float32 where the device has none), sums that add up over batches: KL divergence, rows in
            the loss, and what :func:`ports.training.loss.count_chains` counts.
        """
        with self._served():
            steps, masks, (norm, head) = self.unroll(batch), self.masks(batch), self.output()
        target = batch["target"].flatten(0, 1)
        kl = torch.zeros(len(steps), dtype=wide_dtype(target.device), device=target.device)
        right = torch.zeros(len(steps), *masks[0].shape, dtype=torch.bool, device=target.device)
        for chunk in rows_in_loss(masks[0]).inside.split(ROWS):
            probabilities, tokens = self.verifier(target[chunk]).probabilities, self.target_tokens(target[chunk])
            for number, (step, mask) in enumerate(zip(steps, masks)):
                logits = F.linear(norm(step.hidden.flatten(0, 1)[chunk]), head)
                kl[number] += kl_sum(logits, probabilities, mask.flatten()[chunk])
                right[number].view(-1)[chunk] = logits.argmax(-1) == tokens
        return torch.stack([kl, torch.stack([mask.sum() for mask in masks]), *count_chains(right, masks[0])])

    @contextmanager
    def _served(self) -> Iterator[None]:
        """Chain alignment, in which drafts are served, whatever they are trained in."""
        layer = self.draft.config.transformer_layer_config
        before = self.alignment, layer._attn_implementation
        same = layer._attn_implementation.replace(*(f"ttt_{each.value}" for each in (self.alignment, Alignment.CHAIN)))
        self.alignment, layer._attn_implementation = Alignment.CHAIN, same
        try:
            yield
        finally:
            self.alignment, layer._attn_implementation = before

    def forward(self, batch: Batch, window_rows: Tensor | None = None, chains: bool = False) -> Any:
        """Unroll and score one micro-batch.

        Args:
            batch: see :data:`ports.training.data.Batch`.
            window_rows: [k], rows in the loss of the whole accumulation window at every step. The loss to run backward
                on is divided by them, so that the accumulated gradient is the big batch's. Default: this batch's own.
            chains: give what :meth:`chains` does instead of an :class:`Outcome`; frameworks prepare a forward alone.
        """
        if chains:
            return self.chains(batch)
        verifier, rows, steps = self.verifier(batch["target"]), self.rows(batch), self.unroll(batch)
        scores = self.score(steps, batch, verifier)
        losses = mean_over(scores.kl, rows)
        backward = self.total(losses if window_rows is None else mean_over(scores.kl, window_rows))
        extra = self.logged(scores.entropies, rows)
        return Outcome(backward, self.reported(losses), losses, scores.hits, verifier, steps, scores, extra)

    def logged(self, entropies: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """The mean cross-entropies of the last step, by name, from their sums [2] over ``rows`` [k]."""
        names = ("train/ploss", "train/topkloss") if self.topk else ()
        return dict(zip(names, mean_over(entropies, rows[-1]).unbind() if names else ()))


@dataclass(frozen=True)
class Normalisation:
    """Whose rows the loss of several processes is divided by.

    Every process divides by its own, and gradients are averaged: a process with few rows weighs them more. ``together``
    all divide by the rows of all: the gradient, and what is logged, is that of one big batch.
    """

    accelerator: Accelerator
    together: bool

    def sum(self, value: Tensor) -> Tensor:
        """Of all processes, or this one's."""
        total: Tensor = self.accelerator.reduce(value.clone(), "sum") if self.together else value
        return total

    def loss(self, backward_loss: Tensor) -> Tensor:
        """The loss to run backward on, given that gradients are averaged over the processes afterwards."""
        return backward_loss * self.accelerator.num_processes if self.together else backward_loss

    @torch.no_grad()
    def report(self, outcome: Outcome, objective: TTTObjective, batch: Batch) -> Outcome:
        """What is logged."""
        if not self.together:
            return outcome
        own, hits, scores = objective.rows(batch), outcome.hits, outcome.scores
        rows = self.sum(own)
        losses, hits = mean_over(self.sum(scores.kl), rows), Hits(*map(self.sum, (hits.correct, hits.top, hits.rows)))
        extra = objective.logged(self.sum(scores.entropies), rows)
        return replace(outcome, loss=objective.reported(losses), step_losses=losses, hits=hits, extra=extra)
