"""The port's attention and loss at sizes that recordings are too small for: several blocks, chunks and wide rows.

Drawn inputs, the same on every machine; the other side are the formulas, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fixtures.draws import uniform
from parity.checks.evidence import Evidence
from parity.compare import compare, compare_groups, compare_value
from parity.result import Row
from parity.runs.reference.attention import ttt_attention
from ports.training.alignment import Alignment
from ports.training.attention.flash import fast_ttt_attention
from ports.training.loss.fused_loss import Extras, TargetRows, fused_kl
from ports.training.loss.likeliest import argmax, topk
from ports.training.loss.objective import mean_over, undo_mean

ATTENTION = ((2, 290, 4), (2, 2, 5), (2, 1, 1))
"""Samples, positions and TTT steps: beyond a block of rows, several blocks of heads, fewer positions than steps."""

LOSS = ((1030, 4096, True), (70, 2048, False), (3, 5, True), (0, 2048, True))
"""Rows in the loss, tokens, is the target kept: several chunks, blocks of columns and the plain way, no row at all."""

HEADS, KEY_HEADS, DIM, WIDTH, TOP = 4, 2, 8, 12, 3


def check_sizes(evidence: Evidence) -> list[Row]:
    """Attention with its gradients, padded behind, inside and in one place; loss with gradients and hits; top-k."""
    rows: list[Row] = []
    for alignment in Alignment:
        for samples, length, steps in ATTENTION:
            for side in ("whole", "right", "inside", "hole"):
                rows += _attention(evidence, samples, length, steps, alignment, side)
    for count, vocabulary, keep in LOSS:
        rows += _loss(evidence, count, vocabulary, keep)
    return [*rows, *_likeliest(evidence), *_means(evidence), *_second_derivatives(evidence)]


def _attention(
    evidence: Evidence, samples: int, length: int, steps: int, alignment: Alignment, side: str
) -> Iterator[Row]:
    mask = _mask(samples, length, side)
    names = ["query", *(f"key{i}" for i in range(steps)), *(f"value{i}" for i in range(steps))]
    shapes = [(samples, HEADS if name == "query" else KEY_HEADS, length, DIM) for name in names]
    drawn = [_drawn(f"{name} {length}", *shape) for name, shape in zip(names, shapes)]
    results = []
    for double in (True, False):
        states = [each.double() if double else each.clone() for each in drawn]
        for each in states:
            each.requires_grad_(True)
        query, keys, values = states[0], tuple(states[1 : steps + 1]), tuple(states[steps + 1 :])
        if double:
            out = ttt_attention(query, keys, values, mask, alignment is Alignment.PROTOTYPE)
        else:
            seen = None if side == "whole" else mask
            out = fast_ttt_attention(query, keys, values, seen, DIM**-0.5, alignment)
        real = torch.where(mask.bool()[:, None, :, None], out, 0)
        seed = _drawn(f"grad {length}", *out.shape).to(out.dtype) * mask[:, None, :, None]
        grads = torch.autograd.grad(real, states, seed, materialize_grads=True)
        results.append({"out": real.detach(), **dict(zip(names, grads))})
    prefix = f"{alignment.value} {samples}x{length} {side} "
    expected, found = ({f"{prefix}{name}": value for name, value in side.items()} for side in results)
    yield from compare_groups(evidence.subject("sizes"), "attention", expected, found, evidence.tolerance("attention"))


def _mask(samples: int, length: int, side: str) -> Tensor:
    """[B, T], a tenth of every sample but the first is no token; or one sample lacks one token, or none does."""
    mask = torch.ones(samples, length, dtype=torch.int64)
    if side == "hole":
        mask[-1, length // 2] = int(length < 3)
    if side in ("hole", "whole"):
        return mask
    stop = length if side == "right" else length // 2
    mask[1:, stop - length // 10 : stop] = 0
    return mask


def _loss(evidence: Evidence, count: int, vocabulary: int, keep: bool) -> Iterator[Row]:
    hidden, wanted = _drawn(f"hidden {count}", count, WIDTH), _drawn(f"target {count}", count, WIDTH)
    head, verifier = (
        _drawn(f"head {vocabulary}", vocabulary, WIDTH),
        _drawn(f"verifier {vocabulary}", vocabulary, WIDTH),
    )
    weights = (torch.arange(count) % 3 > 0).long()
    hidden.requires_grad_(True)
    head.requires_grad_(True)
    found = fused_kl(hidden, head, TargetRows(wanted, verifier, keep), weights, Extras(hits=True, topk=TOP))
    grads = torch.autograd.grad(found.kl * 0.5, (hidden, head))
    numbers = [found.kl, found.cross_entropy, found.topk, found.hits.correct, *found.hits.top, found.hits.rows]
    right_numbers, right_grads = _formula(hidden, head, wanted, verifier, weights)
    subject, name = evidence.subject("sizes"), f"{count} rows of {vocabulary}, {'kept' if keep else 'again'}"
    room = TargetRows(wanted, verifier, keep)
    fits = [len(each) <= count and each.shape[1] == vocabulary for each in (room.buffer, room.spare)]
    yield compare_value(subject, "room", name, [True, True], fits)
    expected, own = (torch.stack([each.detach().double() for each in side]) for side in (right_numbers, numbers))
    yield compare(subject, "sums", name, expected, own, evidence.tolerance("sums"))
    if count:
        for parameter, right, grad in zip(("hidden", "head"), right_grads, grads):
            yield compare(subject, "grad", f"{name}: {parameter}", right, grad, evidence.tolerance("grad"))


def _formula(
    hidden: Tensor, head: Tensor, wanted: Tensor, verifier: Tensor, weights: Tensor
) -> tuple[list[Tensor], Sequence[Tensor]]:
    """KL, cross-entropies, hits and rows as they are defined, and half the gradient of the KL, in float64."""
    hidden, head = (each.detach().double().requires_grad_(True) for each in (hidden, head))
    logits, target_logits = hidden @ head.T, wanted.double() @ verifier.double().T
    log_q, log_t = logits.log_softmax(-1), target_logits.log_softmax(-1)
    kl = ((log_t.exp() * (log_t - log_q)).sum(-1) * weights).sum()
    terms = -log_t.exp() * log_q * weights[:, None]
    likeliest = terms.gather(-1, torch.topk(log_t, TOP, dim=-1).indices)
    order = torch.topk(logits, TOP, dim=-1).indices == target_logits.argmax(-1)[:, None]
    hits = (order & (weights > 0)[:, None]).sum(0).cumsum(0)
    grads = torch.autograd.grad(kl * 0.5, (hidden, head))
    return [kl, terms.sum(), likeliest.sum(), hits[0], *hits, weights.sum()], grads


def _likeliest(evidence: Evidence) -> Iterator[Row]:
    """Blocks of columns beside torch's own search, with several largest entries in a row."""
    subject = evidence.subject("sizes")
    for columns in (4096, 1536, 1024, 1000, 512):
        values = (_drawn(f"values {columns}", 40, columns) * 50).round()
        distinct = _drawn(f"distinct {columns}", 40, columns)
        expected, found = torch.topk(distinct, TOP, dim=-1), topk(distinct, TOP)
        for name, right, own in zip(("values", "indices"), expected, found):
            yield compare(subject, "batch", f"top {TOP} of {columns}: {name}", right, own, evidence.tolerance("batch"))
        yield compare(
            subject,
            "batch",
            f"first largest of {columns}",
            values.argmax(-1),
            argmax(values),
            evidence.tolerance("batch"),
        )


def _means(evidence: Evidence) -> Iterator[Row]:
    """Few rows in the loss, where the prototypes' 1e-5 beside their number shows; and back again."""
    rows, total = torch.tensor([0, 1, 2, 7]), torch.tensor([0.5, 0.5, 3.0, 4.0])
    expected, subject = total.double() / (rows.double() + 1e-5), evidence.subject("sizes")
    yield compare(subject, "sums", "means over few rows", expected, mean_over(total, rows), evidence.tolerance("sums"))
    back = undo_mean(mean_over(total, rows), rows)
    yield compare(subject, "sums", "totals of means", total, back, evidence.tolerance("sums"))


def _second_derivatives(evidence: Evidence) -> Iterator[Row]:
    """Gradients are computed without a graph of their own: whoever asks for theirs is refused, not given zeros."""
    states = [_drawn(f"second {name}", 1, 2, 4, DIM).requires_grad_(True) for name in ("query", "key", "value")]
    query, key, value = states
    out = fast_ttt_attention(query, (key,), (value,), None, DIM**-0.5, Alignment.CHAIN)
    hidden, head = (_drawn(f"second {name}", 4, WIDTH).requires_grad_(True) for name in ("hidden", "head"))
    target = TargetRows(hidden.detach() + 1, head.detach(), True)
    loss = fused_kl(hidden, head, target, torch.ones(4)).kl
    for name, value, leaf in (("attention", out.sum(), query), ("loss", loss, hidden)):
        (grad,) = torch.autograd.grad(value, leaf, create_graph=True)
        try:
            found = str(torch.autograd.grad(grad.square().sum(), leaf)[0].tolist())
        except RuntimeError as error:
            found = type(error).__name__
        yield compare_value(evidence.subject("sizes"), "grad", f"second derivative of {name}", "RuntimeError", found)


def _drawn(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(uniform(0, name, shape)).float() * 3**0.5
