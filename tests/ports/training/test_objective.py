"""Both objectives: the losses of the steps by hand, what backward runs on, what is reported, and in which precision."""

from functools import partial

import pytest
import torch
from torch.utils._pytree import tree_leaves

from ports.eagle3.objective import Eagle3Objective
from ports.hass.objective import HassObjective
from ports.training.alignment import Alignment

REPORTED = {"eagle3": torch.sum, "hass": torch.mean}
only = partial(pytest.mark.parametrize, "port", indirect=True)


@pytest.fixture(params=REPORTED)
def port(request):
    return request.param


@pytest.fixture
def objective(lively_draft, port):
    def make(steps=3, alignment=Alignment.PROTOTYPE):
        draft = lively_draft(ttt_alignment=alignment.value)
        return Eagle3Objective(draft, steps, alignment) if port == "eagle3" else HassObjective(draft, steps)

    return make


def by_hand(objective, batch):
    """Step losses, in float64, row by row."""
    draft, losses = objective.draft, []
    head = getattr(draft, "verifier_lm_head", draft.lm_head).weight.double()
    p = torch.softmax(batch["target"].double() @ head.T, -1)
    for number, step in enumerate(objective.unroll(batch)):
        total, count = 0.0, 0
        for b, t in batch["loss_mask"].nonzero().tolist():
            if objective.alignment is Alignment.CHAIN and t < number:
                continue
            log_q = torch.log_softmax(step.logits[b, t].double(), -1)
            total, count = total + (p[b, t] * (p[b, t].log() - log_q)).sum(), count + 1
        losses.append(total / (count + 1e-5))
    return torch.stack(losses)


@pytest.mark.parametrize("alignment", list(Alignment))
def test_losses_are_masked_means_whose_sum_is_run_backward_on(objective, port, batch_of, alignment):
    chosen, batch = objective(4, alignment), batch_of(0, 1, 2, ttt_alignment=alignment.value)
    outcome, expected = chosen(batch), by_hand(chosen, batch)
    torch.testing.assert_close(outcome.step_losses.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outcome.backward_loss, outcome.step_losses.sum())
    torch.testing.assert_close(outcome.loss, REPORTED[port](outcome.step_losses.detach()))
    assert outcome.backward_loss.requires_grad
    assert not outcome.loss.requires_grad
    assert any(leaf is outcome.backward_loss for leaf in tree_leaves(outcome)), "FSDP2 looks for it so"
    rows = batch["loss_mask"].bool()
    correct = (outcome.steps[-1].logits.argmax(-1) == outcome.target.logits.argmax(-1))[rows].sum()
    assert alignment is Alignment.CHAIN or (outcome.hits.correct, outcome.hits.rows) == (correct, rows.sum())


def test_an_algorithm_may_weigh_its_steps(objective, batch_of, monkeypatch):
    """Alone and in an accumulation window, what backward runs on is ``total`` of the steps' losses."""
    chosen, batch, weights = objective(), batch_of(0, 1), torch.tensor([1.0, 0.5, 0.25])
    reported = chosen(batch).loss
    monkeypatch.setattr(type(chosen), "total", lambda self, losses: losses @ weights)
    for window, share in ((None, 1.0), (2 * chosen.rows(batch), 0.5)):
        outcome = chosen(batch, window)
        assert torch.equal(outcome.loss, reported)
        assert torch.allclose(outcome.backward_loss, share * outcome.step_losses @ weights, rtol=1e-5)


@only(["eagle3"])
def test_target_head_and_rotary_frequencies_stay_float32_when_the_module_is_cast(objective, batch_of):
    chosen, batch = objective(), batch_of(0, 1)
    exact, frequencies = chosen(batch).target.logits, chosen.draft.rotary_emb.inv_freq.clone()
    chosen.bfloat16()
    assert torch.equal(chosen(batch).target.logits, exact)
    assert chosen.draft.lm_head.weight.dtype is torch.bfloat16
    assert not torch.equal(chosen.draft.rotary_emb.inv_freq.float(), frequencies)
    chosen.after_cast()
    assert chosen.draft.rotary_emb.inv_freq.dtype is torch.float32
    assert torch.equal(chosen.draft.rotary_emb.inv_freq, frequencies)


@only(["hass"])
def test_under_autocast_the_head_gives_bfloat16_and_gradients_stay_float32(objective, batch_of):
    chosen = objective(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outcome = chosen(batch_of(0, 1))
    outcome.backward_loss.backward()
    assert outcome.steps[1].hidden_in.dtype == outcome.steps[1].hidden.dtype == torch.float32
    assert outcome.steps[0].logits.dtype == torch.bfloat16
    assert outcome.target.logits.dtype == torch.float32
    assert torch.equal(outcome.target.logits, outcome.target.logits.to(torch.bfloat16).float())
    grads = [value.grad for value in chosen.draft.parameters() if value.grad is not None]
    assert {value.dtype for value in grads} == {torch.float32}
