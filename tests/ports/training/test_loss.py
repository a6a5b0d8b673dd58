"""Both ways of computing the loss beside the sums as they are defined, in float64; what the fused one keeps."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from ports.training import loss
from ports.training.alignment import Alignment
from ports.training.loss import (
    LossImplementation,
    Verifier,
    count_hits,
    eager_scores,
    fused_kl,
    fused_scores,
    kl_sum,
    mean_over,
)
from ports.training.objective import Step, TTTObjective, step_rows
from tests.ports.training.test_flash import Largest

WIDTH = 6
MASKS = {"all rows": [[1, 1], [1, 1]], "some": [[0, 1, 1], [1, 0, 1]], "none": [[0, 0]]}

SIZES = [(1, 8, 3), (5, 4, 1), (7, 16, 100), (64, 20, 257), (300, 64, 1100)]
"""Rows N, hidden size h, vocabulary D."""


def draw(size, closeness=0.3, dtype=torch.float32):
    """Verifier's hidden rows and head, the draft's, and which rows are in the loss."""
    rows, width, vocabulary = size
    verifier, hidden = torch.randn(rows, width), torch.randn(rows, width)
    theirs = 2 * torch.randn(vocabulary, width) / width**0.5
    ours = theirs + closeness * torch.randn(vocabulary, width) / width**0.5
    hidden = verifier + closeness * hidden
    weights = (torch.rand(rows) < 0.7).long()
    weights[0] = 1
    return verifier, theirs, hidden.to(dtype).requires_grad_(), ours.to(dtype).requires_grad_(), weights


def plain_hits(verifier, theirs, hidden, ours, weights):
    target, logits = Verifier(verifier[None], theirs), hidden[None] @ ours.t()
    return count_hits(logits, target.logits.argmax(-1), weights[None])


def fused(verifier, theirs, hidden, ours, weights, topk=0, **changes):
    """The fused form of one TTT step."""
    scores = fused_kl(hidden[None], ours, Verifier(verifier, theirs, **changes), weights[None], topk)
    return replace(scores, kl=scores.kl[0])


def exact(verifier, theirs, hidden, ours, weights):
    """The same in float64, from the definition."""
    t = torch.softmax(verifier.double() @ theirs.double().t(), dim=-1)
    log_q = torch.log_softmax(hidden @ ours.t(), dim=-1)
    return ((torch.xlogy(t, t) - t * log_q).sum(-1) * weights).sum()


def gradients(total, hidden, ours, weights):
    return torch.autograd.grad(mean_over(total, weights.sum()), (hidden, ours))


def rounding_of_gradients(verifier, theirs, hidden, ours, weights):
    """The most that float32 may be off in either gradient, where the draft is so close that q - t is all rounding.

    A logit z is off by a few ulp of the largest, which makes q and t off by as much of themselves.
    """
    wanted, logits = verifier.double() @ theirs.double().t(), (hidden @ ours.t()).detach()
    ulps = 2 * torch.finfo(torch.float32).eps * (1 + logits.abs().max())
    mass = ulps * (logits.softmax(-1) + wanted.softmax(-1)) * weights[:, None] / weights.sum()
    return (mass @ ours.detach().abs()).max(), (mass.t() @ hidden.detach().abs()).max()


@pytest.fixture(params=[(1, 1), (5, 1), (256, 1 << 22)], ids=["one row", "five rows", "as shipped"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(loss, "ROWS", request.param[0])
    monkeypatch.setattr(loss, "CHUNK", request.param[1])


def by_definition(states, masks, head, wanted, verifier, count):
    """KL of every step, then of the last one its hits in the first 1, 1, 2, 3, its rows and both cross-entropies."""
    log_t = (wanted.double() @ verifier.double().T).log_softmax(-1)
    log_q = [(state.double() @ head.double().T).log_softmax(-1) for state in states]
    kl = [(log_t.exp() * (log_t - each)).sum(-1)[mask > 0].sum() for each, mask in zip(log_q, masks)]
    inside = masks[-1] > 0
    found = log_q[-1].topk(min(3, len(head)), dim=-1).indices == log_t.argmax(-1, keepdim=True)
    hits = (found & inside[..., None]).sum((0, 1)).cumsum(0)
    terms = (-log_t.exp() * log_q[-1])[inside]
    likeliest = terms.gather(-1, log_t[inside].topk(count, dim=-1).indices)
    return torch.stack([*kl, hits[0], *hits, inside.sum(), terms.sum(), likeliest.sum()])


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("vocabulary", [9, 2])
@pytest.mark.parametrize(("name", "alignment", "quick"), list(product(MASKS, Alignment, [False, True])), ids=str)
def test_the_sums_are_those_defined(name, alignment, quick, vocabulary):
    mask, count = torch.tensor(MASKS[name]), min(4, vocabulary)
    states, wanted = torch.randn(3, *mask.shape, WIDTH), torch.randn(*mask.shape, WIDTH)
    head, verifier = torch.randn(2, vocabulary, WIDTH)
    masks, target = [step_rows(mask, step, alignment) for step in range(3)], Verifier(wanted, verifier)
    if quick:
        scores = fused_scores(states, masks, target, nn.Identity(), head, count)
    else:
        scores = eager_scores(states @ head.T, masks, target, count)
    found = [*scores.kl, scores.hits.correct, *scores.hits.top, scores.hits.rows, *scores.entropies]
    expected = by_definition(states, masks, head, wanted, verifier, count)
    torch.testing.assert_close(torch.stack([each.double() for each in found]), expected, rtol=2e-6, atol=1e-6)
    true = (wanted.double() @ verifier.double().T).softmax(-1)
    torch.testing.assert_close(target.probabilities.double(), true, rtol=2e-6, atol=1e-6)


def test_a_probability_of_0_counts_nothing():
    logits = torch.tensor([[[50.0, 0.0, 0.0]]], requires_grad=True)
    total = kl_sum(logits, torch.tensor([[[0.0, 0.5, 0.5]]]), torch.ones(1, 1))
    total.backward()
    torch.testing.assert_close(total.item(), 50 - torch.tensor(2.0).log().item(), rtol=1e-5, atol=0)
    assert bool(logits.grad.isfinite().all())


def test_bfloat16_logits_are_scored_in_float32():
    logits, target, rows = torch.randn(2, 5, 7).bfloat16(), torch.randn(2, 5, 7).softmax(-1), torch.ones(2, 5)
    assert torch.equal(kl_sum(logits, target, rows), kl_sum(logits.float(), target, rows))


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("closeness", [0.003, 0.3])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_plain_loss_with_its_gradients_and_hits(size, closeness):
    verifier, theirs, hidden, ours, weights = draw(size, closeness)
    scores = fused(verifier, theirs, hidden, ours, weights)
    hits = plain_hits(verifier, theirs, hidden, ours, weights)
    precise = [value.detach().double().requires_grad_() for value in (hidden, ours)]
    true_loss = exact(verifier, theirs, *precise, weights)
    assert (scores.kl - true_loss).abs() <= 1e-6 * (true_loss + weights.sum())
    found = gradients(scores.kl, hidden, ours, weights)
    true = gradients(true_loss, *precise, weights)
    rounding = rounding_of_gradients(verifier, theirs, *precise, weights)
    for value, best, bound in zip(found, true, rounding, strict=True):
        scale = best.abs().max().clamp(min=1e-6 / weights.sum())
        assert (value - best).abs().max() <= max(5e-7 * scale, bound)
    for name in ("correct", "top", "rows"):
        assert torch.equal(getattr(scores.hits, name), getattr(hits, name)), name


def test_float64_gradcheck():
    verifier, theirs, hidden, ours, weights = draw((6, 3, 5), 0.5, torch.float64)
    target, steps = Verifier(verifier, theirs, torch.float64), torch.stack([weights, torch.ones_like(weights)])
    hidden = torch.stack([hidden, 2 * hidden]).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *inputs: fused_kl(*inputs, target, steps).kl, (hidden, ours))


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_the_plain_loss_in_bfloat16(autocast):
    verifier, theirs, hidden, ours, weights = draw((64, 32, 257), dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scores = fused(verifier, theirs, hidden, ours, weights)
        logits = torch.nn.functional.linear(hidden, ours)[None]
    assert logits.dtype is torch.bfloat16
    assert scores.kl.dtype is torch.float32
    total = kl_sum(logits, Verifier(verifier[None], theirs).probabilities, weights[None])
    torch.testing.assert_close(scores.kl, total, rtol=1e-6, atol=0)
    for value, wanted in zip(gradients(scores.kl, hidden, ours, weights), gradients(total, hidden, ours, weights)):
        assert value.dtype is wanted.dtype
        torch.testing.assert_close(value, wanted, rtol=0, atol=0.01 * wanted.abs().max().item())
        slope = (value.double() * wanted).sum() / wanted.double().square().sum()
        assert abs(slope - 1) <= 3e-4  # rounding is random; a common factor would not be


def test_a_target_of_another_dtype():
    verifier, theirs, hidden, ours, weights = draw((20, 8, 30))
    target = torch.softmax(torch.nn.functional.linear(verifier.bfloat16(), theirs.bfloat16()).float()[None], dim=-1)
    wanted = kl_sum((hidden @ ours.t())[None], target, weights[None])
    found = fused(verifier, theirs, hidden, ours, weights, dtype=torch.bfloat16).kl
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_only_what_trains_gets_a_gradient():
    verifier, theirs, hidden, ours, weights = draw((20, 8, 30))
    fused(verifier, theirs, hidden, ours.detach(), weights).kl.backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert not fused(verifier, theirs, hidden, ours, weights).kl.requires_grad
    fused(verifier, theirs, hidden.detach(), ours, weights).kl.backward()
    assert ours.grad is not None


def test_nothing_of_rows_times_vocabulary_outlives_a_chunk(monkeypatch):
    """Neither saved for the backward nor held on the way: twelve chunks, and no tensor larger than one of them."""
    monkeypatch.setattr(loss, "ROWS", 16)
    monkeypatch.setattr(loss, "CHUNK", 1)
    verifier, theirs, hidden, ours, weights = draw((192, 4, 100))
    kept = []
    with (
        Largest() as seen,
        torch.autograd.graph.saved_tensors_hooks(
            lambda value: kept.append(value.numel()) or value, lambda value: value
        ),
    ):
        fused(verifier, theirs, hidden, ours, weights, 5)
    assert max(kept) == hidden.numel()
    assert seen.entries == 16 * 100


@pytest.mark.parametrize("implementation", list(LossImplementation))
def test_only_the_eager_loss_makes_all_logits(implementation):
    head, states = torch.randn(9, 6), torch.randn(3, 2, 4, 6)
    objective = TTTObjective(nn.Identity(), 3, Alignment.PROTOTYPE, implementation)
    objective.output = lambda: (nn.Identity(), head)
    steps = [Step(state, state, lambda hidden: hidden @ head.T) for state in states]
    batch = {"attention_mask": torch.ones(2, 4), "loss_mask": torch.ones(2, 4, dtype=torch.int64)}
    objective.score(steps, batch, Verifier(torch.randn(2, 4, 6), torch.randn(9, 6)))
    assert ["logits" in vars(step) for step in steps] == [implementation is LossImplementation.EAGER] * 3
