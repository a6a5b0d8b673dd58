"""Checkpoints of both ports in vLLM, as they lie: the verifier's own tokens, and acceptance as the evaluator counts it.

The process that vLLM runs in is not this one. It runs in float32, so that greedy tokens repeat.
"""

import pytest
import torch

from ports.evaluate.drafter import Eagle3Drafter, drafter_of, open_draft, read_vocabulary, untrained
from ports.generate.vocabulary import VocabularySettings, write_vocabulary
from ports.serving.fold import write_folded
from ports.training.saving import save_draft
from tests.needs import VLLM
from tests.serving.conftest import DRAFT_VOCAB_SIZE, LENGTH, NUM_PROMPTS, TTT_STEPS, counted, drafted, evaluated

pytestmark = VLLM


@pytest.fixture(scope="module")
def plain(serve, texts):
    fixture, ids = texts
    return serve([text[:24] for text in ids], model=str(fixture / "verifier"))


@pytest.fixture(scope="module")
def served(serve, trained):
    return drafted(serve, trained, trained.draft)


def test_tokens_are_the_verifiers_own(plain, served, trained):
    assert plain["tokens"] == [answer[:LENGTH] for answer in trained.answers[:NUM_PROMPTS]]
    assert served["tokens"] == plain["tokens"]
    assert "drafts" not in plain


def test_proposals_are_accepted_at_every_place(served):
    assert served["proposed"] == TTT_STEPS * served["drafts"]
    assert served["accepted"] == sum(served["accepted_per_position"])
    assert served["accepted_per_position"] == sorted(served["accepted_per_position"], reverse=True)
    assert served["accepted_per_position"][-1] > 0


def test_acceptance_is_what_the_evaluator_counts(served, trained):
    assert counted(served) == evaluated(trained, trained.draft)


def test_an_untrained_draft_is_served_and_counted_alike(serve, plain, trained, tmp_path):
    draft = save_draft(untrained(open_draft(trained.draft)), tmp_path / "untrained")
    found = drafted(serve, trained, draft)
    assert found["tokens"] == plain["tokens"]
    assert counted(found) == evaluated(trained, draft)


def test_the_eagle3_draft_alone_brings_its_verifier(serve, served, trained):
    if trained.kind != "eagle3":
        pytest.skip("vLLM 0.32 starts a draft alone only if its type is one of vLLM's own: name verifier and draft")
    assert serve(trained.prompts, model=str(trained.draft)) == served


def test_features_of_one_layer_less_would_show(served, trained):
    """The planted fault: Speculators' own feature layers in place of those that the draft was trained on."""
    if trained.kind != "eagle3":
        pytest.skip("a HASS draft reads the last layer alone")

    class Shifted(Eagle3Drafter):
        def features(self, states):
            return torch.cat([states[layer] for layer in (2, 4, 5)], dim=-1)

    assert counted(served) != evaluated(trained, trained.draft, Shifted)


def test_a_folded_hass_draft_counts_the_same(serve, served, trained, tmp_path):
    if trained.kind != "hass":
        pytest.skip("folding is for HASS drafts")
    folded = write_folded(open_draft(trained.draft), tmp_path / "folded")
    assert drafted(serve, trained, folded) == served


def test_a_hass_draft_with_a_vocabulary_counts_what_the_evaluator_counts(serve, served, plain, trained, tmp_path):
    """Of so few tokens that some of the verifier's are missing."""
    if trained.kind != "hass":
        pytest.skip("an Eagle3 draft has a vocabulary of its own")
    size = DRAFT_VOCAB_SIZE // 16
    records = {"tmpdir": trained.verifier.parent / "data_hass", "basepath": str(trained.verifier), "output": tmp_path}
    write_vocabulary(VocabularySettings(**records, draft_vocab_size=size))
    draft = open_draft(trained.draft)
    vocabulary = read_vocabulary(tmp_path, draft)
    found = drafted(serve, trained, write_folded(draft, tmp_path / "folded", vocabulary))
    assert found["tokens"] == plain["tokens"]
    assert 0 < found["accepted"] != served["accepted"]
    assert counted(found) == evaluated(trained, trained.draft, lambda model: drafter_of(model, vocabulary))
