"""What the evaluator counts of a trained draft, without a server."""

from __future__ import annotations

import pytest
import torch

from ports.evaluate.decode import Limits
from ports.evaluate.drafter import drafter_of, open_draft, untrained
from ports.evaluate.measure import Evaluation, evaluate
from ports.evaluate.verifier import open_verifier
from tests.ports.evaluate.plain import simulate
from tests.serving.conftest import TTT_STEPS, Trained

NUM_PROMPTS, LENGTH = 6, 48


def measured(trained: Trained, model) -> Evaluation:
    verifier = open_verifier(str(trained.verifier), "float32", torch.device("cpu"))
    return evaluate(verifier, drafter_of(model), trained.prompts[:NUM_PROMPTS], Limits(LENGTH), TTT_STEPS)


@pytest.fixture(scope="module")
def found(trained) -> Evaluation:
    return measured(trained, open_draft(trained.draft))


def test_it_is_what_a_simulation_without_caches_counts(found, trained):
    verifier = open_verifier(str(trained.verifier), "float32", torch.device("cpu"))
    plain = simulate(open_draft(trained.draft), verifier, trained.prompts[:NUM_PROMPTS], LENGTH, TTT_STEPS)
    assert found.counters == plain
    assert found.counters.accepted_per_position[-1] > 0


def test_no_token_changes(found, trained):
    assert found.differences == []
    assert [answer.tokens for answer in found.drafted] == [answer[:LENGTH] for answer in trained.answers[:NUM_PROMPTS]]


def test_training_is_seen(found, trained):
    before = measured(trained, untrained(open_draft(trained.draft)))
    assert before.differences == []
    assert found.counters.acceptance_length >= 1.5 * before.counters.acceptance_length
