"""The HASS loss: gradients that add up over steps, a mean that is reported, and two losses that are only logged."""

from __future__ import annotations

import pytest
import torch

from ports.hass.adapter import EConfig, Model
from ports.hass.objective import HassObjective
from ports.training.alignment import Alignment
from ports.training.objective import next_hidden

STEPS = 4


def summed(draft, batch, gradients):
    HassObjective(draft, STEPS)(batch).backward_loss.backward()
    return gradients(draft)


def loss_of(draft, hidden, batch):
    """Masked mean KL, written out."""
    target = torch.softmax(batch["target"] @ draft.lm_head.weight.T, dim=-1).detach()
    log_q = torch.log_softmax(draft.lm_head(draft.lm_head_layernorm(hidden)), dim=-1)
    divergence = (target * (target.clamp(min=1e-38).log() - log_q)).sum(-1)
    return (divergence * batch["loss_mask"]).sum() / (batch["loss_mask"].sum() + 1e-5)


def backward_after_each_step(model, batch, detach=True):
    """The prototype's loop, with the history handed in; returns the steps' losses."""
    hidden, history, losses = batch["features"], [], []
    for _ in range(STEPS):
        out = model(hidden, batch["input_ids"], batch["attention_mask"], history)
        losses.append(loss_of(model.draft, out, batch))
        losses[-1].backward(retain_graph=not detach)
        history.append(hidden.detach() if detach else hidden)
        hidden = next_hidden(hidden, out.detach() if detach else out)
    return torch.stack(losses).detach()


@pytest.fixture
def adapter(fixture, lively_draft):
    model = Model(EConfig.from_pretrained(str(fixture / "draft_hass.json")), path=str(fixture / "verifier"))
    model.draft.load_state_dict(lively_draft().state_dict())
    return model


def test_one_backward_over_the_sum_is_a_backward_after_each_step(lively_draft, adapter, batch_of, gradients, agree):
    batch = batch_of(0, 1)
    losses = backward_after_each_step(adapter, batch)
    stepwise = gradients(adapter)
    outcome = HassObjective(lively_draft(), STEPS)(batch)
    torch.testing.assert_close(outcome.step_losses.detach(), losses)
    agree(summed(lively_draft(), batch, gradients), stepwise)


def test_a_history_with_gradient_would_be_seen(lively_draft, adapter, batch_of, gradients, agree):
    batch = batch_of(0, 1)
    backward_after_each_step(adapter, batch, detach=False)
    with pytest.raises(AssertionError, match="of its largest element"):
        agree(summed(lively_draft(), batch, gradients), gradients(adapter), of_largest=1e-2)


def test_backward_runs_on_the_sum_and_the_report_is_the_mean(lively_draft, batch_of):
    outcome = HassObjective(lively_draft(), STEPS)(batch_of(0, 1))
    assert outcome.step_losses.shape == (STEPS,)
    torch.testing.assert_close(outcome.backward_loss, outcome.step_losses.sum())
    torch.testing.assert_close(outcome.loss, outcome.step_losses.detach().mean())
    assert not outcome.loss.requires_grad


@pytest.mark.parametrize("alignment", ["prototype", "chain"])
def test_micro_batches_of_a_window_add_up_to_the_big_batch(lively_draft, batch_of, gradients, agree, alignment):
    draft = lively_draft(ttt_alignment=alignment)
    objective = HassObjective(draft, STEPS)
    whole = batch_of(0, 1, 2, ttt_alignment=alignment)
    parts = [batch_of(0, ttt_alignment=alignment), batch_of(1, 2, ttt_alignment=alignment)]
    objective(whole).backward_loss.backward()
    expected = gradients(draft)
    rows = torch.stack([objective.rows(part) for part in parts]).sum(0)
    assert torch.equal(rows, objective.rows(whole))
    for part in parts:
        objective(part, rows).backward_loss.backward()
    agree(gradients(draft), expected)


def test_the_draft_says_which_alignment(lively_draft):
    for alignment in Alignment:
        assert HassObjective(lively_draft(ttt_alignment=alignment.value), 1).alignment is alignment


def test_logged_cross_entropies_are_the_loops(lively_draft, batch_of):
    batch, topk = batch_of(0, 1), 5
    outcome = HassObjective(lively_draft(), 2, topk)(batch)
    last, target = outcome.steps[-1].logits.detach(), outcome.target.probabilities
    full = best = 0.0
    for b, p in batch["loss_mask"].nonzero().tolist():
        terms = (-target[b, p] * torch.log_softmax(last[b, p], -1)).tolist()
        order = target[b, p].argsort(descending=True)[:topk].tolist()
        full, best = full + sum(terms), best + sum(terms[token] for token in order)
    count = int(batch["loss_mask"].sum()) + 1e-5
    assert outcome.extra.keys() == {"train/ploss", "train/topkloss"}
    assert outcome.extra["train/ploss"] == pytest.approx(full / count, rel=1e-5)
    assert outcome.extra["train/topkloss"] == pytest.approx(best / count, rel=1e-5)


def test_no_row_in_the_loss_gives_zeros(lively_draft, batch_of):
    draft, batch = lively_draft(), batch_of(0)
    batch["loss_mask"] = torch.zeros_like(batch["loss_mask"])
    outcome = HassObjective(draft, 2)(batch)
    outcome.backward_loss.backward()
    assert outcome.loss == 0.0
    assert outcome.extra == {"train/ploss": 0.0, "train/topkloss": 0.0}
    assert all(not value.grad.any() for value in draft.parameters() if value.grad is not None)


def test_under_autocast_the_head_gives_bfloat16_and_gradients_stay_float32(lively_draft, batch_of, gradients):
    draft, batch = lively_draft(), batch_of(0, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outcome = HassObjective(draft, 2)(batch)
    outcome.backward_loss.backward()
    assert outcome.steps[1].hidden_in.dtype == outcome.steps[1].hidden.dtype == torch.float32
    assert outcome.steps[0].logits.dtype == torch.bfloat16
    rounded = outcome.target.logits.to(torch.bfloat16).float()
    assert outcome.target.logits.dtype == torch.float32
    assert torch.equal(outcome.target.logits, rounded)
    assert all(value.dtype == torch.float32 for value in gradients(draft).values())


def test_an_algorithm_may_weigh_its_steps(lively_draft, batch_of):
    """Alone and in an accumulation window, what backward runs on is ``total`` of the steps' losses."""
    batch, weights = batch_of(0, 1), torch.tensor([1.0, 0.5, 0.25])

    class Weighted(HassObjective):
        def total(self, losses):
            return losses @ weights

    plain, weighted = HassObjective(lively_draft(), 3), Weighted(lively_draft(), 3)
    for window, share in ((None, 1.0), (2 * plain.rows(batch), 0.5)):
        outcome, losses = weighted(batch, window), plain(batch).step_losses
        assert torch.allclose(outcome.backward_loss, share * losses @ weights, rtol=1e-5)
        assert torch.equal(outcome.step_losses, losses)
