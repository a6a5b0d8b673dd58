"""Chain alignment against Speculators' own forward, on its own attention, with its own loss.

Speculators counts from the start of a draft: its index q at step s is position p = q + s here.
"""

import json

import pytest
import torch
from speculators.models.eagle3 import Eagle3DraftModel

from parity.prototypes.library import speculators_forward, speculators_inputs
from ports.eagle3.objective import Eagle3Objective
from ports.training.alignment import Alignment

STEPS = 4


@pytest.fixture
def pair(fixture, lively_draft):
    """Our draft in chain alignment and the same weights in Speculators' model; the files hold post-norm targets."""

    def make(layers=1):
        file = fixture / "draft_eagle3.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": layers}))
        draft = lively_draft(ttt_alignment="chain", forward_num_total=STEPS)
        config = type(draft.config).from_dict(draft.config.to_dict())
        config.transformer_layer_config._attn_implementation = "sdpa"  # eager sees wrong keys in Speculators 0.8.1
        theirs = Eagle3DraftModel(config)
        theirs.load_state_dict(draft.state_dict())
        theirs.verifier_norm = torch.nn.Identity()
        return draft, theirs

    return make


def one_longer(batch):
    """The last position is the one that is left out of Speculators' forward."""
    return {name: torch.cat([value, value[:, -1:]], dim=1) for name, value in batch.items()}


def compare_gradients(draft, theirs):
    found = {name: value.grad for name, value in draft.named_parameters() if value.grad is not None}
    wanted = {name: value.grad for name, value in theirs.named_parameters() if value.grad is not None}
    assert set(wanted) == set(found) - {"lm_head.weight"}  # Speculators freezes its head
    assert len(wanted) >= 12
    for name, value in wanted.items():
        # 2.7e-6 measured over 3 layers and 4 steps: two kernels that sum in another order
        assert float((found[name] - value).norm()) <= 1e-5 * float(value.norm()), name


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_logits_loss_and_gradients_are_speculators(pair, batch_of, layers, index):
    draft, theirs = pair(layers)
    batch = batch_of(index, ttt_alignment="chain")
    length = batch["input_ids"].shape[1]
    logits, loss = speculators_forward(theirs, one_longer(batch), STEPS)
    outcome = Eagle3Objective(draft, STEPS, Alignment.CHAIN)(batch)
    assert len(outcome.steps) == len(logits) == STEPS
    for number, (step, wanted) in enumerate(zip(outcome.steps, logits, strict=True)):
        shared = wanted[:, : max(length - number, 0)]
        torch.testing.assert_close(step.logits[:, number:], shared, rtol=0, atol=1e-5)
        assert number >= length - 1 or shared.std() > 0.8
    torch.testing.assert_close(outcome.loss, loss.detach(), rtol=1e-6, atol=1e-6)
    outcome.backward_loss.backward()
    loss.backward()
    compare_gradients(draft, theirs)


def test_padding_is_speculators_document_minus_1(pair, batch_of):
    draft, theirs = pair()
    batch = {name: value[1:] for name, value in batch_of(2, 1, ttt_alignment="chain").items()}
    assert batch["attention_mask"].sum() == 5 < batch["attention_mask"].numel()
    documents = {"document_ids": batch["attention_mask"] - 1}
    _, loss, _ = theirs(**speculators_inputs(one_longer(batch), STEPS) | documents)
    outcome = Eagle3Objective(draft, STEPS, Alignment.CHAIN)(batch)
    torch.testing.assert_close(outcome.loss, loss.detach(), rtol=1e-6, atol=1e-6)


def test_the_prototypes_alignment_would_fail(pair, batch_of, lively_draft):
    """The planted fault: keys of earlier steps at the query's own position."""
    _, theirs = pair()
    batch = batch_of(0, ttt_alignment="chain")
    logits, _ = speculators_forward(theirs, one_longer(batch), STEPS)
    own = Eagle3Objective(lively_draft(ttt_alignment="prototype"), STEPS, Alignment.CHAIN)(batch)
    gaps = [float((step.logits[:, s:] - logits[s][:, : 9 - s]).abs().max()) for s, step in enumerate(own.steps)]
    assert max(gaps[:2]) < 1e-5
    assert min(gaps[2:]) > 0.1
