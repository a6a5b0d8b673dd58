"""The HASS loss: gradients that add up over steps, a mean that is reported, and two losses that are only logged."""

from __future__ import annotations

import pytest
import torch

from ports.hass.adapter import EConfig, Model
from ports.hass.objective import HassObjective
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
