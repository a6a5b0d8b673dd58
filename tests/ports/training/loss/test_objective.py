import pytest
import torch

from ports.training.alignment import Alignment
from ports.training.loss.objective import Target, count_hits, kl_sum, mean_over, step_rows


def some_target(shape=(2, 5, 7)):
    logits = torch.randn(shape)
    return Target(logits, torch.softmax(logits, -1))


def test_the_divergence_is_the_sum_over_the_rows_in_the_loss():
    logits, target = torch.randn(2, 5, 7), some_target()
    rows = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 1, 1]])
    log_q, p = torch.log_softmax(logits.double(), -1), target.probabilities.double()
    by_hand = sum((p[b, t] * (p[b, t].log() - log_q[b, t])).sum() for b, t in rows.nonzero().tolist())
    torch.testing.assert_close(kl_sum(logits, target, rows).double(), by_hand, rtol=1e-5, atol=1e-6)


def test_a_probability_of_0_counts_nothing():
    target = Target(torch.zeros(1, 1, 3), torch.tensor([[[0.0, 0.5, 0.5]]]))
    logits = torch.tensor([[[50.0, 0.0, 0.0]]], requires_grad=True)
    loss = kl_sum(logits, target, torch.ones(1, 1))
    loss.backward()
    torch.testing.assert_close(loss.item(), 50 - torch.tensor(2.0).log().item(), rtol=1e-5, atol=0)
    assert bool(logits.grad.isfinite().all())


def test_a_perfect_draft_has_loss_0_and_rows_outside_get_no_gradient():
    target = some_target()
    logits = target.logits.clone().requires_grad_()
    rows = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 1]])
    assert abs(kl_sum(logits, target, rows).item()) < 1e-6
    kl_sum(logits * 2, target, rows).backward()
    assert bool(logits.grad[rows.bool()].any())
    assert not logits.grad[~rows.bool()].any()


def test_bfloat16_logits_are_scored_in_float32():
    logits, target, rows = torch.randn(2, 5, 7).bfloat16(), some_target(), torch.ones(2, 5)
    assert torch.equal(kl_sum(logits, target, rows), kl_sum(logits.float(), target, rows))


def test_the_mean_is_finite_without_rows():
    assert mean_over(torch.tensor(0.0), torch.tensor(0)).item() == 0
    assert mean_over(torch.tensor(6.0), torch.tensor(3)).item() == pytest.approx(6 / (3 + 1e-5), rel=1e-6)


def test_the_chain_drops_the_first_rows_of_later_steps():
    mask = torch.ones(2, 4, dtype=torch.int64)
    assert [step_rows(mask, step, Alignment.PROTOTYPE).sum().item() for step in range(4)] == [8, 8, 8, 8]
    assert [step_rows(mask, step, Alignment.CHAIN)[0].tolist() for step in range(3)] == [
        [1, 1, 1, 1],
        [0, 1, 1, 1],
        [0, 0, 1, 1],
    ]
    assert mask.all()


def test_hits_are_counted_on_the_rows_in_the_loss():
    wanted = torch.tensor([[3, 0, 1, 2]])
    target = Target(torch.nn.functional.one_hot(wanted, 5).float(), torch.zeros(1, 4, 5))
    order = torch.tensor([[[3, 0, 1, 2, 4], [1, 0, 2, 3, 4], [2, 3, 1, 0, 4], [2, 0, 1, 3, 4]]])
    logits = torch.zeros(1, 4, 5).scatter(-1, order, torch.tensor([5.0, 4, 3, 2, 1]).expand(1, 4, 5))
    hits = count_hits(logits, target, torch.tensor([[1, 1, 1, 0]]))
    assert (int(hits.correct), hits.top.tolist(), int(hits.rows)) == (1, [1, 2, 3], 3)


def test_a_vocabulary_of_two_has_two_ranks():
    hits = count_hits(torch.randn(1, 4, 2), some_target((1, 4, 2)), torch.ones(1, 4))
    assert hits.top[-1].item() == 4
