"""Drawn answers have the verifier's distribution whatever the draft proposes, held by a test that sees what would
change it.

Verifier and draft know the last token alone: V tokens follow each other by a table [V, V] of logits, so that the
distribution of every token of an answer is known exactly.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import PretrainedConfig

from ports.evaluate.decode import Limits, decode, decode_speculatively
from ports.evaluate.drafter import Drafter
from ports.evaluate.sampling import Sampling, choice_of
from ports.evaluate.verifier import KVCache, TargetModel

DRAWS, LENGTH, SIZE, TEMPERATURE, SEED = 20_000, 5, 3, 0.7, 7
VOCAB_SIZE, KEPT, START = 6, (0, 2, 3, 5), 1
ENOUGH = 0.01
"""A p-value below it says that draws are not of the distribution; those of an answer's tokens are multiplied by their
number (Bonferroni)."""

generator = torch.Generator().manual_seed(3)
TABLE = torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=generator)
GUESS = TABLE[:, list(KEPT)] + 0.7 * torch.randn(VOCAB_SIZE, len(KEPT), generator=generator)


class Verifier:
    """Logits by the table; its hidden states are the ids."""

    device, dtype = torch.device("cpu"), torch.float32
    config = PretrainedConfig(vocab_size=VOCAB_SIZE)

    def __call__(self, input_ids, **others):
        return SimpleNamespace(logits=TABLE[input_ids], hidden_states=[input_ids[..., None].float()])


class Guesser(Drafter):
    """A draft without layers, with a vocabulary of its own."""

    def __init__(self, kept=KEPT):
        config = SimpleNamespace(transformer_layer_config=PretrainedConfig(vocab_size=VOCAB_SIZE))
        model = SimpleNamespace(config=config, layers=[], rotary_emb=lambda out, positions: None)
        model.eval = lambda: model
        super().__init__(model, torch.tensor(kept))

    def features(self, states):
        return states[-1]

    def enter(self, features):
        return features

    def fuse(self, ids, hidden):
        return ids[..., None].float()

    def logits(self, hidden):
        return GUESS[hidden[:, 0].long()]


def expected():
    """The distribution [V] of every token of an answer."""
    table, found = torch.softmax(TABLE.double() / TEMPERATURE, -1), []
    for _ in range(LENGTH):
        found.append(found[-1] @ table if found else table[START])
    return found


def biased(probabilities):
    """One probability larger by 0.01, another smaller."""
    least, most = probabilities.argmin(), probabilities.argmax()
    shift = torch.zeros_like(probabilities).index_fill(0, least, 0.01).index_fill(0, most, -0.01)
    return probabilities + shift


def p_values(answers, wanted):
    """Of a chi-squared test of every token of the answers, corrected for their number."""
    counts = [tokens.bincount(minlength=VOCAB_SIZE).numpy() for tokens in torch.tensor(answers).T]
    return [LENGTH * float(chisquare(found, len(answers) * each.numpy()).pvalue) for found, each in zip(counts, wanted)]


def drawn(drafter=None, seed=SEED, draws=DRAWS):
    choice, limits, prompts = Sampling(TEMPERATURE, seed, torch.device("cpu")), Limits(LENGTH), [[4, START]] * draws
    if drafter is None:
        return [answer.tokens for answer in decode(Verifier(), prompts, limits, choice)]
    answers = decode_speculatively(Verifier(), drafter, prompts, limits, SIZE, choice)
    return [answer.tokens for answer in answers]


@pytest.mark.parametrize("drafter", [None, Guesser()], ids=["plain", "drafted"])
def test_answers_are_distributed_as_the_verifiers(drafter):
    answers = drawn(drafter)
    assert min(p_values(answers, expected())) > ENOUGH
    assert max(p_values(answers, [biased(each) for each in expected()])) < ENOUGH


def shifted(self, hidden, choice, pick=Drafter._pick):
    tokens, weights = pick(self, hidden, choice)
    return tokens, weights.roll(1, dims=1) + 1e-9


FAULTS = {
    "the residual left out": ("sampling.residual", lambda p, q: p),
    "the draft's share left in": ("sampling.residual", lambda p, q: q.clamp(min=1e-9)),
    "acceptance without the quotient": ("sampling.acceptance", lambda p, q: p),
    "a quotient upside down": ("sampling.acceptance", lambda p, q: q / p),
    "everything accepted": ("sampling.acceptance", lambda p, q: torch.ones_like(p)),
    "the draft's weights at other tokens than those that it says": ("drafter.Drafter._pick", shifted),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_rule_or_in_the_reading_of_a_draft_vocabulary_is_seen(monkeypatch, fault):
    name, wrong = FAULTS[fault]
    monkeypatch.setattr(f"ports.evaluate.{name}", wrong)
    assert min(p_values(drawn(Guesser(), draws=DRAWS // 4), expected())) < ENOUGH


def test_a_seed_repeats_its_draws_and_another_gives_others():
    assert drawn(Guesser(), draws=99) == drawn(Guesser(), draws=99) != drawn(Guesser(), seed=6, draws=99)


def away(pairs):
    """Standard errors that the mean difference is from nothing."""
    moved = np.subtract(*np.transpose(pairs))
    return abs(float(moved.mean() / moved.std() * len(moved) ** 0.5))


@pytest.mark.parametrize("fault", [None, lambda p, q, likely: torch.minimum(p, q).sum(-1), lambda p, q, likely: likely])
def test_what_is_expected_is_what_luck_gives_with_less_noise(monkeypatch, cpu, fault):
    """The first proposal of each answer; faults: the tokens before are forgotten, one's chance for all."""
    if fault:
        monkeypatch.setattr("ports.evaluate.sampling.chances", fault)
    prompts, choice = [[START]] * DRAWS, Sampling(TEMPERATURE, SEED, cpu)
    answers = decode_speculatively(Verifier(), Guesser(), prompts, Limits(LENGTH), SIZE, choice)
    pairs = [(sum(each.expected[0]), float(each.accepted[0])) for each in answers]
    assert (away(pairs) < 3) == (fault is None)
    if fault is None:
        assert np.std([one for one, _ in pairs]) < 0.7 * np.std([other for _, other in pairs])


def test_a_draft_draws_what_it_says_and_nothing_else(pair, prompts, cpu):
    """Of either algorithm: its tokens' weights are those of its head at the temperature, and 0 on the others."""
    target = TargetModel(pair.judge, pair.drafter.features)
    block, size = target.prefill(prompts), 2
    drafter, said = pair.drafter, []
    logits = drafter.logits
    drafter.logits = lambda hidden: said.append(logits(hidden)) or said[-1]
    found = drafter.propose(KVCache(len(prompts), cpu), block, size, Sampling(TEMPERATURE, SEED, cpu))
    kept = torch.arange(61) if pair.draft.config.speculators_model_type == "hass" else pair.draft.t2d.nonzero()[:, 0]
    wanted = torch.zeros(len(prompts), size, 61)
    wanted[:, :, kept] = torch.softmax(torch.stack(said, 1) / TEMPERATURE, -1)
    torch.testing.assert_close(found.probabilities, wanted, rtol=1e-6, atol=1e-9)
    assert found.probabilities.gather(2, found.tokens[..., None]).min() > 0


def test_greedy_is_the_limit(cpu):
    prompts = [[token] for token in range(VOCAB_SIZE)]
    greedy = [answer.tokens for answer in decode(Verifier(), prompts, Limits(LENGTH), choice_of(0, 0, cpu))]
    cold = decode_speculatively(Verifier(), Guesser(), prompts, Limits(LENGTH), SIZE, choice_of(0.01, 0, cpu))
    assert [answer.tokens for answer in cold] == greedy


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize(("table", "whose"), [("TABLE", "verifier"), ("GUESS", "draft")])
def test_logits_that_are_no_numbers_are_refused(monkeypatch, refuses, cpu, table, whose, temperature):
    """As those of float16 where a sum does not fit."""
    spoiled = globals()[table].clone()
    spoiled[:, 2] = torch.inf
    monkeypatch.setitem(globals(), table, spoiled)
    with refuses(whose, "logits", "NaN or Inf in torch.float32", "numbers"):
        decode_speculatively(Verifier(), Guesser(), [[START]], Limits(LENGTH), SIZE, choice_of(temperature, 0, cpu))
