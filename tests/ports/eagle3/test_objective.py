import pytest
import torch
from torch.utils._pytree import tree_leaves

from ports.eagle3.model import unroll
from ports.eagle3.objective import Eagle3Objective
from ports.training.alignment import Alignment

BOTH = list(Alignment)


@pytest.fixture
def objective(lively_draft):
    def make(steps=3, alignment=Alignment.PROTOTYPE):
        return Eagle3Objective(lively_draft(ttt_alignment=alignment.value), steps, alignment)

    return make


def by_hand(objective, batch):
    """Step losses, in float64, row by row."""
    steps = unroll(objective.draft, batch["features"], batch["input_ids"], batch["attention_mask"], objective.ttt_steps)
    head = objective.draft.verifier_lm_head.weight.double()
    p = torch.softmax(batch["target"].double() @ head.T, -1)
    losses = []
    for number, step in enumerate(steps):
        total, count = 0.0, 0
        for b, t in batch["loss_mask"].nonzero().tolist():
            if objective.alignment is Alignment.CHAIN and t < number:
                continue
            log_q = torch.log_softmax(step.logits[b, t].double(), -1)
            total, count = total + (p[b, t] * (p[b, t].log() - log_q)).sum(), count + 1
        losses.append(total / (count + 1e-5))
    return torch.stack(losses)


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_loss_is_the_plain_sum_of_the_masked_means(objective, batch_of, steps, alignment):
    chosen, batch = objective(steps, alignment), batch_of(0, 1, 2, ttt_alignment=alignment.value)
    outcome, expected = chosen(batch), by_hand(chosen, batch)
    torch.testing.assert_close(outcome.step_losses.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outcome.loss, outcome.step_losses.detach().sum())
    torch.testing.assert_close(outcome.backward_loss, outcome.loss)
    assert outcome.backward_loss.requires_grad
    assert not outcome.loss.requires_grad


def test_fsdp2_finds_the_loss_in_what_a_forward_returns(objective, batch_of):
    outcome = objective()(batch_of(0, 1))
    assert any(leaf is outcome.backward_loss for leaf in tree_leaves(outcome))


def test_window_rows_divide_the_loss_to_run_backward_on_and_no_other(objective, batch_of):
    chosen, batch = objective(), batch_of(0, 1)
    rows = chosen.rows(batch)
    plain, windowed = chosen(batch), chosen(batch, rows * 4)
    assert torch.equal(plain.loss, windowed.loss)
    torch.testing.assert_close(windowed.backward_loss * (rows[0] * 4 + 1e-5), plain.backward_loss * (rows[0] + 1e-5))


def test_rows_are_counted_per_step(objective, batch_of):
    batch = batch_of(0, 1)
    assert objective().rows(batch).tolist() == [int(batch["loss_mask"].sum())] * 3
    batch["loss_mask"] = torch.ones_like(batch["loss_mask"])
    assert objective(alignment=Alignment.CHAIN).rows(batch).tolist() == [18, 16, 14]


def test_hits_are_those_of_the_last_step(objective, batch_of):
    chosen, batch = objective(), batch_of(0, 1, 2)
    outcome, rows = chosen(batch), batch["loss_mask"].bool()
    correct = (outcome.steps[-1].logits.argmax(-1) == outcome.target.logits.argmax(-1))[rows].sum()
    assert (outcome.hits.correct, outcome.hits.rows) == (correct, rows.sum())
    assert outcome.hits.top[0] == correct


def test_the_target_head_stays_float32_when_the_module_is_cast(objective, batch_of):
    chosen, batch = objective(), batch_of(0, 1)
    exact = chosen(batch).target.logits
    chosen.bfloat16()
    assert torch.equal(chosen(batch).target.logits, exact)
    assert chosen.draft.lm_head.weight.dtype is torch.bfloat16


def test_after_cast_the_rotary_frequencies_are_float32_again(objective):
    chosen = objective()
    exact = chosen.draft.rotary_emb.inv_freq.clone()
    chosen.bfloat16()
    assert not torch.equal(chosen.draft.rotary_emb.inv_freq.float(), exact)
    chosen.after_cast()
    assert chosen.draft.rotary_emb.inv_freq.dtype is torch.float32
    assert torch.equal(chosen.draft.rotary_emb.inv_freq, exact)
