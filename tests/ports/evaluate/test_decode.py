"""Speculative decoding: the verifier's own tokens, the counts of a plain simulation, the right end."""

import copy
import random

import pytest
import torch

from ports.evaluate.acceptance import count
from ports.evaluate.decode import Limits, decode, decode_speculatively
from ports.evaluate.measure import evaluate
from ports.evaluate.sampling import Proposal
from ports.evaluate.verifier import KVCache
from ports.verifier.loading import load_verifier
from tests.ports.conftest import edit
from tests.ports.evaluate.plain import continue_greedily, propose, simulate

LENGTH, SIZE = 17, 3


class Scripted:
    """Proposes what ``right`` says after the texts so far; keeps what the drafter behind it would have said."""

    def __init__(self, drafter, texts, right):
        self.drafter, self.features, self.texts, self.right = drafter, drafter.features, texts, right
        self.grown = [list(text) for text in texts]
        self.said = []

    def propose(self, cache, block, size, choice):
        said = self.drafter.propose(cache, block, size, choice).tokens
        proposals = []
        for row, text in enumerate(self.grown):
            new = block.ids[row, block.fresh[row]].tolist()
            text += new if len(text) > len(self.texts[row]) else new[-1:]
            self.said.append((list(text), said[row].tolist()))
            proposals.append(self._next(row, len(text), size))
        return Proposal(torch.tensor(proposals))

    def _next(self, row, done, size):
        """The verifier's next tokens, wrong from a random place on."""
        whole, cut = self.right[row], random.randrange(size + 1)
        return [token if place < cut else (token + 1) % 61 for place, token in enumerate(whole[done : done + size])]


@pytest.fixture
def scripted(pair, prompts):
    right = [prompt + continue_greedily(pair.judge, prompt, 60) for prompt in prompts]
    return Scripted(pair.drafter, [list(prompt) for prompt in prompts], right)


def answers_of(pair, prompts, length=LENGTH):
    return [continue_greedily(pair.judge, prompt, length) for prompt in prompts]


def test_plain_decoding_is_the_verifiers_generate(pair, prompts):
    found = [answer.tokens for answer in decode(pair.judge, prompts, Limits(LENGTH))]
    words = {"max_new_tokens": LENGTH, "min_new_tokens": LENGTH, "do_sample": False, "eos_token_id": None}
    for prompt, tokens in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        assert (
            tokens == pair.judge.generate(ids, attention_mask=torch.ones_like(ids), **words)[0, len(prompt) :].tolist()
        )
    assert found == answers_of(pair, prompts)


@pytest.mark.parametrize(("fault", "seen"), [("", (False, False)), ("crop", (True, False)), ("accept", (True, True))])
def test_proposals_after_any_acceptance_are_those_of_drafting_without_a_cache(
    pair, scripted, prompts, monkeypatch, fault, seen
):
    """The planted faults: the draft keeps what it cached of its own proposals, the verifier of rejected ones."""
    if fault:
        monkeypatch.setattr(KVCache, fault, lambda self, words: None)
    plain, found = copy.deepcopy(pair.draft), decode_speculatively(pair.judge, scripted, prompts, Limits(LENGTH), SIZE)
    wrong = [said != propose(plain, pair.states(text[:-1]), text, SIZE) for text, said in scripted.said]
    assert (any(wrong), [answer.tokens for answer in found] != answers_of(pair, prompts)) == seen
    assert len(scripted.said) > 5 * len(prompts)


@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (5, 4)])
def test_counts_are_those_of_a_simulation(pair, prompts, size, batch_size):
    found = evaluate(pair.judge, pair.drafter, prompts, Limits(LENGTH), size, batch_size)
    assert count(found, size) == simulate(copy.deepcopy(pair.draft), pair.judge, prompts, LENGTH, size)
    assert [answer.tokens for answer in found] == [answer.plain for answer in found] == answers_of(pair, prompts)


def test_a_token_that_ends_an_answer_ends_it(pair, scripted, prompts):
    whole = answers_of(pair, prompts)
    stop = frozenset({whole[0][4], whole[1][0]})
    ends = [next((place + 1 for place, token in enumerate(tokens) if token in stop), LENGTH) for tokens in whole]
    limits = Limits(LENGTH, stop)
    expected = [tokens[:end] for tokens, end in zip(whole, ends, strict=True)]
    assert [answer.tokens for answer in decode(pair.judge, prompts, limits)] == expected
    found = decode_speculatively(pair.judge, scripted, prompts, limits, SIZE)
    assert [answer.tokens for answer in found] == expected
    assert found[1].accepted == []


@pytest.mark.parametrize("build", ["eagle3"], indirect=True)
def test_one_window_for_all_layers_changes_no_token(fixture, pair, prompts, cpu):
    """The verifier's weights in a Mistral, whose config names no types of layers; prompts exceed the window.

    Of configs that do: ``tests/ports/architectures``.
    """
    file = fixture / "verifier" / "config.json"
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 4}
    edit(file, **mistral)
    windowed = load_verifier(str(file.parent), "float32", cpu, head=True)
    wanted = [continue_greedily(windowed, prompt, 40) for prompt in prompts]
    assert wanted != [continue_greedily(pair.judge, prompt, 40) for prompt in prompts]
    drafter = Scripted(pair.drafter, prompts, [prompt + more for prompt, more in zip(prompts, wanted)])
    limits = Limits(20)
    for found in decode(windowed, prompts, limits), decode_speculatively(windowed, drafter, prompts, limits, 3):
        assert [answer.tokens for answer in found] == [tokens[:20] for tokens in wanted]
