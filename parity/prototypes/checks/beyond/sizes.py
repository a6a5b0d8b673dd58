"""The port's attention and loss at sizes that recordings are too small for: several blocks, chunks and wide rows.

Drawn inputs, the same on every machine; the other side are the formulas, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from parity.compare import compare, compare_groups, compare_value
from parity.prototypes.checks.beyond.attention import check_attention, drawn
from parity.prototypes.checks.evidence import Evidence
from parity.verdict import Row
from ports.training.alignment import Alignment
from ports.training.attention.flash import fast_ttt_attention
from ports.training.loss.fused_loss import Extras, TargetRows, fused_kl
from ports.training.loss.likeliest import argmax, topk
from ports.training.loss.objective import mean_over, undo_mean

LOSS = ((1030, 4096, True), (70, 2048, False), (3, 5, True), (0, 2048, True))
"""Rows in the loss, tokens, is the target kept: several chunks, blocks of columns and the plain way, no row at all."""

WIDTH, TOP = 12, 3


def check_sizes(evidence: Evidence) -> list[Row]:
    """Attention with its gradients, padded behind, inside and in one place; loss with gradients and hits; top-k."""
    rows = check_attention(evidence)
    for count, vocabulary, keep in LOSS:
        rows += _loss(evidence, count, vocabulary, keep)
    rows += _one_sided(evidence)
    return [*rows, *_likeliest(evidence), _many_rows(evidence), *_means(evidence), *_second_derivatives(evidence)]


def _loss(evidence: Evidence, count: int, vocabulary: int, keep: bool) -> Iterator[Row]:
    hidden, wanted = drawn(f"hidden {count}", count, WIDTH), drawn(f"target {count}", count, WIDTH)
    head, verifier = (
        drawn(f"head {vocabulary}", vocabulary, WIDTH),
        drawn(f"verifier {vocabulary}", vocabulary, WIDTH),
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


def _one_sided(evidence: Evidence) -> Iterator[Row]:
    """A head that is trained below frozen hidden states, and a frozen one."""
    states = {name: drawn(f"one-sided {name}", 7, WIDTH) for name in ("hidden", "head", "wanted", "verifier")}
    target, weights = TargetRows(states["wanted"], states["verifier"], True), torch.ones(7)
    hidden, head, wanted, verifier = states.values()
    _, (of_hidden, of_head) = _formula(hidden, head, wanted, verifier, weights)
    for name, expected in (("hidden", of_hidden), ("head", of_head)):
        leaves = {each: states[each].clone().requires_grad_(each == name) for each in ("hidden", "head")}
        (fused_kl(leaves["hidden"], leaves["head"], target, weights).kl * 0.5).backward()
        found = {each: leaf.grad for each, leaf in leaves.items() if leaf.grad is not None}
        named = {f"alone: {name}": expected}
        own = {f"alone: {each}": grad for each, grad in found.items()}
        yield from compare_groups(evidence.subject("sizes"), "grad", named, own, evidence.tolerance("grad"))


def _likeliest(evidence: Evidence) -> Iterator[Row]:
    """Blocks of columns beside torch's own search, with several largest entries in a row."""
    subject = evidence.subject("sizes")
    for columns in (5121, 5000, 4096, 1536, 1024, 1000, 512):
        values = (drawn(f"values {columns}", 40, columns) * 50).round()
        distinct = drawn(f"distinct {columns}", 40, columns)
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


def _many_rows(evidence: Evidence) -> Row:
    """More rows than columns."""
    values = drawn("many rows", 4096, 9)
    subject, tolerance = evidence.subject("sizes"), evidence.tolerance("batch")
    return compare(subject, "batch", "first largest of 4096 rows", values.argmax(-1), argmax(values), tolerance)


def _means(evidence: Evidence) -> Iterator[Row]:
    """Few rows in the loss, where the prototypes' 1e-5 beside their number shows; and back again."""
    rows, total = torch.tensor([0, 1, 2, 7]), torch.tensor([0.5, 0.5, 3.0, 4.0])
    expected, subject = total.double() / (rows.double() + 1e-5), evidence.subject("sizes")
    yield compare(subject, "sums", "means over few rows", expected, mean_over(total, rows), evidence.tolerance("sums"))
    back = undo_mean(mean_over(total, rows), rows)
    yield compare(subject, "sums", "totals of means", total, back, evidence.tolerance("sums"))


def _second_derivatives(evidence: Evidence) -> Iterator[Row]:
    """Gradients are computed without a graph of their own: whoever asks for theirs is refused, not given zeros."""
    query, key, value = (drawn(f"second {name}", 1, 2, 4, 8).requires_grad_(True) for name in ("q", "k", "v"))
    out = fast_ttt_attention(query, (key,), (value,), None, 1.0, Alignment.CHAIN)
    hidden, head = (drawn(f"second {name}", 4, WIDTH).requires_grad_(True) for name in ("hidden", "head"))
    target = TargetRows(hidden.detach() + 1, head.detach(), True)
    loss = fused_kl(hidden, head, target, torch.ones(4)).kl
    for name, value, leaf in (("attention", out.sum(), query), ("loss", loss, hidden)):
        (grad,) = torch.autograd.grad(value.square(), leaf, create_graph=True)
        try:
            grad.square().sum().backward()
            found = "given"
        except RuntimeError as error:
            found = "refused" if "once_differentiable" in str(error) else str(error)
        yield compare_value(evidence.subject("sizes"), "grad", f"second derivative of {name}", "refused", found)
