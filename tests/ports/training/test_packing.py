"""Samples packed into one row against the same samples padded: attention, hidden states, losses, every gradient."""

from functools import partial

import pytest
import torch

import ports.eagle3.model
import ports.hass.model
import ports.training.attention
import ports.training.objective
from ports.training.data import collate, pack
from ports.training.masks import Documents
from tests.ports.training.test_attention import BOTH, FORMS

SAMPLES = (0, 4, 2, 1)
"""9, 3, 12 and 5 tokens: the second is shorter than five steps."""

FLOAT32 = 3e-6
"""The same in float32: sums in another order. Measured at most 8e-7."""


@pytest.fixture
def objective_of(lively):
    """``objective_of(algorithm, **changes)``: an objective, and samples for it."""

    def make(algorithm, **changes):
        objective, records = lively(algorithm, **changes)
        samples = [records[index] for index in SAMPLES]
        for sample in samples:
            sample.loss_mask[:-1] = 1  # with the rows at the borders, into which a document could leak
        return objective, samples

    return make


def compare(objective, samples):
    """``name -> largest difference, of the largest entry`` of everything that both batches give."""
    packed, padded = (observe(objective, batch) for batch in (pack(samples), collate(samples)))
    assert packed.keys() == padded.keys()
    assert all(bool(value.any()) for value in padded.values())
    return {name: float((packed[name] - padded[name]).abs().max() / padded[name].abs().max()) for name in padded}


def observe(objective, batch):
    outcome = objective(batch)
    outcome.backward_loss.backward()
    hits = torch.stack([outcome.hits.correct, *outcome.hits.top, outcome.hits.rows]).double()
    seen = {f"hidden.step{n}": on_real_rows(step.hidden, batch) for n, step in enumerate(outcome.steps)}
    seen |= {f"loss.step{n}": loss.detach() for n, loss in enumerate(outcome.step_losses)}
    return {**seen, "rows": objective.rows(batch).double(), "hits": hits, **gradients(objective)}


def on_real_rows(states, batch):
    return states.detach()[batch["attention_mask"].bool()]


def gradients(objective):
    named = {name: value.grad for name, value in objective.draft.named_parameters() if value.grad is not None}
    objective.zero_grad(set_to_none=True)
    return {f"grad.{name}": value for name, value in named.items()}


CASES = [(algorithm, alignment.value, form) for algorithm in ("eagle3", "hass") for alignment in BOTH for form in FORMS]


@pytest.mark.parametrize(("algorithm", "alignment", "form"), CASES)
def test_losses_hits_and_gradients_are_those_of_the_padded_batch(objective_of, algorithm, alignment, form):
    changes = {"ttt_alignment": alignment, "attn_implementation": form, "forward_num_total": 5}
    found = compare(*objective_of(algorithm, **changes))
    assert found.pop("rows") == 0
    assert found.pop("hits") == 0
    assert max(found.values()) <= FLOAT32, found


def one_document(mask):
    """What the row would be if nobody had written down where the documents lie."""
    return Documents((), torch.arange(mask.shape[1])[None], None, right_padded=True)


def leak_attention(patch):
    patch.setattr(ports.training.attention, "documents_of", one_document)


def leak_next_hidden(patch):
    for module in (ports.eagle3.model, ports.hass.model):
        patch.setattr(module, "next_hidden", partial(forgetting_first, module.next_hidden))


def forgetting_first(old, hidden, out, first=None):
    return old(hidden, out)


def leak_step_rows(patch):
    patch.setattr(ports.training.objective, "documents_of", one_document)


FAULTS = {
    "attention across documents, fast": (leak_attention, "fast", "prototype", "hidden.step0"),
    "attention across documents, eager": (leak_attention, "eager", "prototype", "hidden.step0"),
    "outputs moved across documents": (leak_next_hidden, "fast", "prototype", "hidden.step1"),
    "the chain's rows counted from the row's start": (leak_step_rows, "fast", "chain", "loss.step1"),
}
"""How documents leak, in which form and alignment, and where the comparison must find it first."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_leak_is_named(objective_of, algorithm, fault, monkeypatch):
    plant, form, alignment, name = FAULTS[fault]
    objective, samples = objective_of(algorithm, ttt_alignment=alignment, attn_implementation=form)
    plant(monkeypatch)
    found = compare(objective, samples)
    assert next(key for key, error in found.items() if error > FLOAT32) == name
    assert max(error for key, error in found.items() if key.startswith("grad.")) > 100 * FLOAT32


def test_rotary_positions_start_anew_in_every_document(objective_of, algorithm):
    """Scores depend on differences of positions alone, so that no loss would show it."""
    objective, samples = objective_of(algorithm)
    seen = []
    objective.draft.rotary_emb.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    objective(pack(samples))
    expected = torch.cat([torch.arange(len(sample.input_ids)) for sample in samples])
    assert seen
    assert all(torch.equal(positions[0], expected) for positions in seen)
