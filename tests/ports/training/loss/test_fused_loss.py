"""The fused loss against the plain one: loss, hits and every gradient; what is kept; what a step reports."""

import pytest
import torch

from ports.training.loss import fused_loss
from ports.training.loss.fused_loss import Extras, TargetRows, fused_kl
from ports.training.loss.objective import Target, count_hits, cross_entropy_sums, kl_sum, mean_over
from tests.ports.training.loss.plain_target import verifier_target

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


def plain(verifier, theirs, hidden, ours, weights):
    target = verifier_target(verifier[None], theirs)
    logits = hidden[None] @ ours.t()
    return kl_sum(logits, target, weights[None]), count_hits(logits, target, weights[None])


def exact(verifier, theirs, hidden, ours, weights):
    """The same in float64, from the definition."""
    t = torch.softmax(verifier.double() @ theirs.double().t(), dim=-1)
    log_q = torch.log_softmax(hidden @ ours.t(), dim=-1)
    return ((torch.xlogy(t, t) - t * log_q).sum(-1) * weights).sum()


def gradients(loss, hidden, ours, weights):
    return torch.autograd.grad(mean_over(loss, weights.sum()), (hidden, ours))


@pytest.fixture(params=[(1, 1), (5, 1), (256, 1 << 22)], ids=["one row", "five rows", "as shipped"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(fused_loss, "ROWS", request.param[0])
    monkeypatch.setattr(fused_loss, "CHUNK", request.param[1])


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("closeness", [0.003, 0.3])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_plain_loss_with_its_gradients_and_hits(size, closeness, keep):
    verifier, theirs, hidden, ours, weights = draw(size, closeness)
    fused = fused_kl(hidden, ours, TargetRows(verifier, theirs, keep), weights, Extras(hits=True))
    loss, hits = plain(verifier, theirs, hidden, ours, weights)
    precise = [value.detach().double().requires_grad_() for value in (hidden, ours)]
    true_loss = exact(verifier, theirs, *precise, weights)
    assert (fused.kl - true_loss).abs() <= 1e-6 * (true_loss + weights.sum())
    found = gradients(fused.kl, hidden, ours, weights)
    wanted = gradients(loss, hidden, ours, weights)
    true = gradients(true_loss, *precise, weights)
    for value, other, best in zip(found, wanted, true, strict=True):
        scale = best.abs().max().clamp(min=1e-6 / weights.sum())
        # close to the target q - t is all rounding: then two maxima of rounding errors are compared
        assert (value - best).abs().max() <= max(5e-7 * scale, 2 * (other - best).abs().max())
    for name in ("correct", "top", "rows"):
        assert torch.equal(getattr(fused.hits, name), getattr(hits, name)), name


def test_float64_gradcheck():
    verifier, theirs, hidden, ours, weights = draw((6, 3, 5), 0.5, torch.float64)
    target = TargetRows(verifier, theirs, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *inputs: fused_kl(*inputs, target, weights).kl, (hidden, ours))


@pytest.mark.usefixtures("chunk")
def test_weights_that_leave_rows_out_are_as_rows_left_out():
    verifier, theirs, hidden, ours, weights = draw((40, 8, 30))
    rows = weights.nonzero().squeeze(1)
    some = fused_kl(hidden[rows], ours, TargetRows(verifier[rows], theirs), weights[rows], Extras(True, 3))
    every = fused_kl(hidden, ours, TargetRows(verifier, theirs), weights, Extras(True, 3))
    for name in ("kl", "cross_entropy", "topk"):
        torch.testing.assert_close(getattr(every, name), getattr(some, name), rtol=1e-6, atol=0)
    assert torch.equal(every.hits.top, some.hits.top)
    outside = torch.autograd.grad(every.kl, hidden)[0][weights == 0]
    assert not outside.any()


@pytest.mark.usefixtures("chunk")
def test_the_cross_entropies_are_those_hass_logs():
    verifier, theirs, hidden, ours, weights = draw((64, 20, 257))
    fused = fused_kl(hidden, ours, TargetRows(verifier, theirs), weights, Extras(topk=10))
    target = verifier_target(verifier[None], theirs)
    whole, likeliest = cross_entropy_sums((hidden @ ours.t())[None], target, weights[None], topk=10).tolist()
    assert fused.cross_entropy.item() == pytest.approx(whole, rel=1e-6)
    assert fused.topk.item() == pytest.approx(likeliest, rel=1e-6)
    assert not fused.hits.top.any()


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_the_plain_loss_in_bfloat16(autocast):
    verifier, theirs, hidden, ours, weights = draw((64, 32, 257), dtype=torch.float32 if autocast else torch.bfloat16)
    target = TargetRows(verifier, theirs)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        fused = fused_kl(hidden, ours, target, weights, Extras(hits=True))
        logits = torch.nn.functional.linear(hidden, ours)[None]
    assert logits.dtype is torch.bfloat16
    assert fused.kl.dtype is torch.float32
    plain_target = verifier_target(verifier[None], theirs)
    loss = kl_sum(logits, plain_target, weights[None])
    torch.testing.assert_close(fused.kl, loss, rtol=1e-6, atol=0)
    for value, wanted in zip(gradients(fused.kl, hidden, ours, weights), gradients(loss, hidden, ours, weights)):
        assert value.dtype is wanted.dtype
        torch.testing.assert_close(value, wanted, rtol=0, atol=0.01 * wanted.abs().max().item())
        slope = (value.double() * wanted).sum() / wanted.double().square().sum()
        assert abs(slope - 1) <= 3e-4  # rounding is random; a common factor would not be


def test_a_target_of_another_dtype():
    verifier, theirs, hidden, ours, weights = draw((20, 8, 30))
    logits = torch.nn.functional.linear(verifier.bfloat16(), theirs.bfloat16()).float()[None]
    target = Target(logits, torch.softmax(logits, dim=-1))
    wanted = kl_sum((hidden @ ours.t())[None], target, weights[None])
    rows = TargetRows(verifier, theirs, dtype=torch.bfloat16)
    torch.testing.assert_close(fused_kl(hidden, ours, rows, weights).kl, wanted, rtol=1e-6, atol=0)
    assert rows.negentropy.dtype is torch.float32


def test_only_what_trains_gets_a_gradient():
    verifier, theirs, hidden, ours, weights = draw((20, 8, 30))
    target = TargetRows(verifier, theirs)
    fused_kl(hidden, ours.detach(), target, weights).kl.backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert not fused_kl(hidden, ours, target, weights).kl.requires_grad
    fused_kl(hidden.detach(), ours, target, weights).kl.backward()
    assert ours.grad is not None


def test_no_step_keeps_logits():
    verifier, theirs, hidden, ours, weights = draw((64, 4, 100))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda value: kept.append(value.numel()) or value, lambda value: value
    ):
        fused_kl(hidden, ours, TargetRows(verifier, theirs), weights, Extras(True, 5))
    assert max(kept) == ours.numel()


def test_no_row_in_the_loss():
    verifier, theirs, hidden, ours, weights = draw((4, 8, 30))
    for rows in (slice(0, 0), slice(0, 4)):
        target = TargetRows(verifier[rows], theirs)
        fused = fused_kl(hidden[rows], ours, target, torch.zeros_like(weights[rows]), Extras(True, 5))
        assert fused.kl.item() == 0
        assert not any(value.any() for value in gradients(fused.kl, hidden, ours, weights * 0))
        assert fused.hits.rows == 0
