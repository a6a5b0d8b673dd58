"""Drafting changes no token of any verifier, and the counts are those of a simulation without caches."""

import copy
import json

import pytest
import torch

from ports.evaluate.acceptance import count
from ports.evaluate.decode import Limits, decode, decode_speculatively
from ports.evaluate.drafter import drafter_of, open_draft
from ports.evaluate.measure import evaluate
from ports.evaluate.verifier import KVCache
from ports.training.records import list_records, read_record
from ports.training.saving import save_draft
from ports.verifier.attention import longest_prompt
from ports.verifier.loading import load_verifier
from tests.ports.architectures.conftest import DRAFTS, STEPS
from tests.ports.conftest import enliven
from tests.ports.evaluate.plain import continue_greedily, simulate
from tests.ports.evaluate.test_decode import Scripted

LENGTH = 24
PROMPTS = (21, 6, 34)
LOCAL = [each for each in DRAFTS if each[0] in ("gpt_oss", "llama4")]
"""Drafts whose verifiers have windows or chunks."""

TRIED = [each for each in DRAFTS if each[1:] != ("eagle3", "llama") or each in LOCAL]
"""That a llama layer for a verifier without them changes no token, ``test_whole_way.py`` shows of each."""


def prompts_of(tiny):
    files = list_records(tiny.folder / "data_eagle3")
    return [read_record(file, {}, 512)["input_ids"].tolist()[:size] for file, size in zip(files, PROMPTS, strict=False)]


@pytest.fixture
def judge(draft):
    return load_verifier(str(draft.tiny.verifier), "float32", torch.device("cpu"), head=True)


@pytest.fixture
def lively(draft):
    """A lively draft, saved and opened as the evaluation does."""
    return open_draft(save_draft(enliven(draft.build()), draft.folder / "saved"))


@pytest.mark.parametrize("draft", TRIED, indirect=True, ids="-".join)
def test_counts_are_those_of_a_simulation_and_no_token_changes(draft, lively, judge):
    prompts = prompts_of(draft.tiny)
    found = evaluate(judge, drafter_of(lively), prompts, Limits(LENGTH), STEPS, batch_size=3)
    wanted = [continue_greedily(judge, prompt, LENGTH) for prompt in prompts]
    assert [answer.tokens for answer in found] == [answer.plain for answer in found] == wanted
    assert count(found, STEPS) == simulate(copy.deepcopy(lively), judge, prompts, LENGTH, STEPS)


def right_proposals(draft, lively, judge):
    prompts = prompts_of(draft.tiny)
    right = [prompt + continue_greedily(judge, prompt, 2 * LENGTH) for prompt in prompts]
    drafter = Scripted(drafter_of(lively), prompts, right)
    found = decode_speculatively(judge, drafter, prompts, Limits(LENGTH), STEPS)
    return found, [answer.tokens for answer in decode(judge, prompts, Limits(LENGTH))]


@pytest.mark.parametrize("draft", LOCAL, indirect=True, ids="-".join)
def test_accepted_and_rejected_tokens_change_no_token_either(draft, lively, judge):
    found, plain = right_proposals(draft, lively, judge)
    assert [answer.tokens for answer in found] == plain
    accepted = [count for answer in found for count in answer.accepted]
    assert {0, 1, 2, 3} == set(accepted)


@pytest.mark.parametrize("draft", LOCAL, indirect=True, ids="-".join)
def test_windows_counted_in_slots_would_change_tokens(draft, lively, judge, monkeypatch):
    """The planted fault: holes count as positions, as transformers' own masks have it."""
    mask = KVCache.mask

    def by_slots(cache, *words):
        cache.positions = torch.arange(cache.slots).expand_as(cache.positions)
        return mask(cache, *words)

    monkeypatch.setattr(KVCache, "mask", by_slots)
    found, plain = right_proposals(draft, lively, judge)
    assert [answer.tokens for answer in found] != plain


def test_a_prompt_may_be_longer_than_windows_and_chunks(tiny):
    assert longest_prompt(str(tiny.verifier), 10, 3) == 512 - 10 - 3


def test_attention_that_sharpens_with_the_length_leaves_room_for_holes(tiny_of, tmp_path):
    config = dict(tiny_of("llama4").architecture.config)
    config["text_config"] = {**config["text_config"], "floor_scale": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert longest_prompt(str(tmp_path), 10, 3) == 100 - 1 - 10 * 4


def test_layers_that_cannot_forget_are_refused(tiny_of, tmp_path, refuses):
    config = dict(tiny_of("qwen3").architecture.config)
    config["layer_types"] = ["linear_attention", *["full_attention"] * 6]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with refuses(tmp_path, "layer_types", "linear_attention", "full_attention, sliding_attention"):
        longest_prompt(str(tmp_path), 10, 3)
