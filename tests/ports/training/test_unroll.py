"""Both drafts over the TTT steps: what padding and other samples may not change."""

import pytest
import torch

from ports.eagle3.model import unroll
from ports.hass.model import HassDraftModel

pytestmark = pytest.mark.parametrize("port", ["eagle3", "hass"])


@torch.no_grad()
def run(draft, batch, steps=3):
    inputs = batch["features"], batch["input_ids"], batch["attention_mask"], steps
    return draft(*inputs) if isinstance(draft, HassDraftModel) else unroll(draft, *inputs)


@pytest.mark.parametrize("alignment", ["prototype", "chain"])
def test_a_sample_does_not_depend_on_the_batch_it_is_padded_into(lively_draft, batch_of, alignment):
    draft = lively_draft(ttt_alignment=alignment)
    together = run(draft, batch_of(0, 1, 2))
    for row, (index, length) in enumerate([(0, 9), (1, 5), (2, 12)]):
        alone = run(draft, batch_of(index))
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one.logits[0], many.logits[row, :length], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alignment", ["prototype", "chain"])
def test_padding_holds_no_nan_and_no_influence(lively_draft, batch_of, alignment):
    draft, batch = lively_draft(ttt_alignment=alignment), batch_of(1, 2)
    real = batch["attention_mask"].bool()
    steps = run(draft, batch)
    noisy = {**batch, "features": torch.where(real[..., None], batch["features"], torch.tensor(1e4))}
    noisy["input_ids"] = torch.where(real, batch["input_ids"], torch.tensor(7))
    for step, other in zip(steps, run(draft, noisy), strict=True):
        assert bool(step.logits.isfinite().all())
        assert bool(other.logits.isfinite().all())
        assert torch.equal(step.logits[real], other.logits[real])
