"""Both objectives: what backward runs on, and in which precision; the losses themselves are the parity checks'."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ports.eagle3.objective import Eagle3Objective
from ports.hass.objective import HassObjective
from ports.training.alignment import Alignment

only = partial(pytest.mark.parametrize, "port", indirect=True)


@pytest.fixture(params=["eagle3", "hass"])
def port(request) -> str:
    return request.param


@pytest.fixture
def objective(lively_draft, port):
    def make(steps=3, alignment=Alignment.PROTOTYPE):
        draft = lively_draft(ttt_alignment=alignment.value)
        return Eagle3Objective(draft, steps, alignment) if port == "eagle3" else HassObjective(draft, steps)

    return make


def test_window_rows_divide_the_loss_to_run_backward_on_and_no_other(objective, batch_of):
    chosen, batch = objective(), batch_of(0, 1)
    rows = chosen.rows(batch)
    assert rows.tolist() == [int(batch["loss_mask"].sum())] * 3
    plain, windowed = chosen(batch), chosen(batch, rows * 4)
    assert torch.equal(plain.loss, windowed.loss)
    torch.testing.assert_close(windowed.backward_loss * (rows[0] * 4 + 1e-5), plain.backward_loss * (rows[0] + 1e-5))


def test_an_algorithm_may_weigh_its_steps(objective, batch_of, monkeypatch):
    """Alone and in an accumulation window, what backward runs on is ``total`` of the steps' losses."""
    chosen, batch, weights = objective(), batch_of(0, 1), torch.tensor([1.0, 0.5, 0.25])
    monkeypatch.setattr(type(chosen), "total", lambda self, losses: losses @ weights)
    for window, share in ((None, 1.0), (2 * chosen.rows(batch), 0.5)):
        outcome = chosen(batch, window)
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
