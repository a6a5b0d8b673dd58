"""Every tiny verifier from records to a trained draft and its evaluation: each number is the model's own.

What is found is what ``docs/architectures.md`` says, whose columns the same function gives.
"""

import json

import pytest

from docs.verifiers import TRIED, YES, Way, tried
from parity.fixtures.architectures import ARCHITECTURES
from ports.errors import InputError
from ports.evaluate.decode import Answer
from ports.training.online import FeatureReader
from ports.verifier.logits import VerifierHead

SAID = json.loads(TRIED.read_text())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_trains_and_evaluates_as_the_page_says(name, tmp_path):
    assert tried(name, tmp_path) == SAID[name], "run python -m docs.tables"


def test_the_page_says_it_of_every_one_and_nothing_else():
    assert list(SAID) == list(ARCHITECTURES)


@pytest.fixture(scope="module")
def granite(tmp_path_factory):
    """With its own scale after the head, and everything made that is trained on."""
    way = Way("granite", tmp_path_factory.mktemp("granite"))
    way.make()
    way.prepare()
    return way


def test_a_scale_that_is_forgotten_would_show(granite, monkeypatch):
    monkeypatch.setattr(VerifierHead, "_is_linear", lambda self: True)
    with pytest.raises(AssertionError, match="targets of records"):
        granite.check_targets()


def test_another_state_online_would_show(granite, monkeypatch):
    states = FeatureReader._states
    monkeypatch.setattr(FeatureReader, "_states", lambda *given: (*states(*given)[:-1], states(*given)[-2]))
    with pytest.raises(AssertionError, match="targets of online"):
        granite.check_targets()


def test_a_norm_left_out_of_prepared_data_would_show(granite, monkeypatch):
    monkeypatch.setattr("ports.training.prepared.applied", lambda norm, state: state)
    with pytest.raises(AssertionError, match=r"targets of .*prepared"):
        granite.check_targets()


def test_weights_that_stay_would_show(granite, monkeypatch):
    monkeypatch.setattr("docs.verifiers.load_file", lambda file: dict(granite.untrained.named_parameters()))
    with pytest.raises(AssertionError, match=r"not trained: .*layers\.0"):
        granite.train()


def test_a_run_that_ends_in_another_way_would_show(granite, monkeypatch):
    monkeypatch.setattr("docs.verifiers.train.main", lambda words: 75)
    with pytest.raises(AssertionError, match="exit code 75"):
        granite.train()


def test_other_tokens_than_the_models_would_show(granite, monkeypatch):
    granite.train()
    monkeypatch.setattr("docs.verifiers.decode", lambda judge, prompts, limits: [Answer([7] * 6) for _ in prompts])
    with pytest.raises(AssertionError, match="the model says"):
        granite.evaluate()


def test_a_refusal_is_its_line(tmp_path, monkeypatch):
    def refuse(self):
        raise InputError(self.verifier, "layer_types", "linear_attention", "others")

    monkeypatch.setattr(Way, "make", refuse)
    said = "verifier: layer_types: found linear_attention, expected others"
    assert tried("llama", tmp_path) == {"trains": said, "evaluates": said}
    assert said != YES
