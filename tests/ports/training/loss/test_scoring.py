"""Both ways of computing the loss, of any rows, beside the sums as they are defined, in float64."""

from itertools import product

import pytest
import torch
from torch import nn

from ports.training.alignment import Alignment
from ports.training.loss.objective import step_rows
from ports.training.loss.scoring import LossImplementation, Verifier, score
from ports.training.loss.steps import Step

WIDTH, VOCABULARY, TOP = 6, 9, 4
MASKS = {"all rows": [[1, 1], [1, 1]], "some": [[0, 1, 1], [1, 0, 1]], "none": [[0, 0]]}


def by_definition(states, masks, head, wanted, verifier):
    """KL of every step, then of the last one its hits in the first 1, 1, 2, 3, its rows and both cross-entropies."""
    log_t = (wanted.double() @ verifier.double().T).log_softmax(-1)
    log_q = [(state.double() @ head.double().T).log_softmax(-1) for state in states]
    kl = [(log_t.exp() * (log_t - each)).sum(-1)[mask > 0].sum() for each, mask in zip(log_q, masks)]
    inside = masks[-1] > 0
    found = log_q[-1].topk(3, dim=-1).indices == log_t.argmax(-1, keepdim=True)
    hits = (found & inside[..., None]).sum((0, 1)).cumsum(0)
    terms = (-log_t.exp() * log_q[-1])[inside]
    likeliest = terms.gather(-1, log_t[inside].topk(TOP, dim=-1).indices)
    return torch.stack([*kl, hits[0], *hits, inside.sum(), terms.sum(), likeliest.sum()])


@pytest.mark.parametrize(
    ("name", "alignment", "implementation"), list(product(MASKS, Alignment, LossImplementation)), ids=str
)
def test_the_sums_are_those_defined_and_only_eager_makes_all_logits(name, alignment, implementation):
    mask = torch.tensor(MASKS[name])
    states, wanted = torch.randn(3, *mask.shape, WIDTH), torch.randn(*mask.shape, WIDTH)
    head, verifier = torch.randn(2, VOCABULARY, WIDTH)
    masks = [step_rows(mask, step, alignment) for step in range(3)]
    steps = [Step(state, state, lambda hidden: hidden @ head.T) for state in states]
    target = Verifier(wanted, verifier)
    scores = score(steps, masks, target, nn.Identity(), head, implementation, TOP)
    assert ["logits" in vars(step) for step in steps] == [implementation is LossImplementation.EAGER] * 3
    found = [*scores.kl, scores.hits.correct, *scores.hits.top, scores.hits.rows, *scores.entropies]
    expected = by_definition(states, masks, head, wanted, verifier)
    torch.testing.assert_close(torch.stack([each.double() for each in found]), expected, rtol=2e-6, atol=1e-6)
    true = (wanted.double() @ verifier.double().T).softmax(-1)
    torch.testing.assert_close(target.probabilities.double(), true, rtol=2e-6, atol=1e-6)
