"""The folded form: it computes what the draft computes, and the command that writes it."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ports.eagle3 import train as eagle3
from ports.generate.vocabulary import VocabularySettings, write_vocabulary
from ports.serving.fold import fold, folded_weights
from ports.serving.plugin import ARCHITECTURE
from ports.training.saving import save_draft
from tests.commands import main_of
from tests.ports.conftest import edit

main = main_of("serve")

ROUND_OFF = 1e-6
"""Of a logit's size: float32 products summed in another order; measured at most 3e-7 on these sizes."""


def test_the_fusion_is_equal_in_float64():
    embedding, norm, fc, hidden = (torch.randn(*shape).double() for shape in ((11, 6), (6,), (6, 12), (5, 6)))
    ids, eps = torch.tensor([3, 0, 10, 3, 7]), 1e-3
    normed = nn.functional.rms_norm(embedding, (6,), norm, eps)[ids]
    expected = nn.functional.linear(torch.cat([normed, hidden], -1), fc)
    table, weight = fold(embedding, norm, eps, fc)
    found = nn.functional.linear(torch.cat([table[ids], hidden], -1), weight)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    for faulty in ((norm, 0.0, fc), (torch.ones_like(norm), eps, fc), (norm, eps, fc.flip(1))):
        assert not torch.allclose(fold(embedding, *faulty)[0], table), "planted: no eps, other norm, other fc"


def test_the_folded_draft_gives_the_drafts_logits(hass_draft, fixture):
    record = torch.load(fixture / "data_hass" / "data_2.ckpt", weights_only=True)
    batch = record["hidden_state"][None], record["input_ids"].roll(-1)[None]
    weights = folded_weights(hass_draft)
    folded = copy.deepcopy(hass_draft)
    folded.embed_layernorm = nn.Identity()
    missing = folded.load_state_dict(weights, strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["lm_head.weight"], [])
    for ours, theirs in zip(folded(*batch, ttt_steps=3), hass_draft(*batch, ttt_steps=3), strict=True):
        scale = float(theirs.logits.detach().abs().max())
        assert float((ours.logits - theirs.logits).detach().abs().max()) <= ROUND_OFF * scale
        assert scale > 1


@pytest.fixture
def command(run_app, capsys):
    return lambda *words: (run_app(main, *words), capsys.readouterr().err.strip().split("\n")[-1])


def test_the_command_writes_config_and_tensors(command, hass_draft, tmp_path):
    draft, output = save_draft(hass_draft, tmp_path / "draft"), tmp_path / "folded"
    assert command(draft, output)[0] == 0
    config, weights = json.loads((output / "config.json").read_text()), load_file(output / "model.safetensors")
    assert (config["architectures"], config["folded_embedding"]) == ([ARCHITECTURE], True)
    assert (config["model_type"], config["hidden_size"], config["vocab_size"]) == ("llama", 32, 61)
    assert set(weights) == hass_draft.state_dict().keys() - {"embed_layernorm.weight", "lm_head.weight"}
    assert weights["embed_tokens.weight"].shape == (61, 32)
    assert torch.equal(weights["fc.weight"][:, :32], torch.eye(32))
    assert torch.equal(weights["fc.weight"][:, 32:], hass_draft.fc.weight[:, 32:])


@pytest.fixture
def vocabulary(fixture, tmp_path):
    """Of the fixture's records."""
    folder = tmp_path / "vocabulary"
    records = {"tmpdir": fixture / "data_hass", "basepath": str(fixture / "verifier"), "output": folder}
    write_vocabulary(VocabularySettings(**records, draft_vocab_size=11))
    return folder


def test_a_vocabulary_brings_its_rows_of_the_head(command, hass_draft, tmp_path, vocabulary):
    draft, output = save_draft(hass_draft, tmp_path / "draft"), tmp_path / "folded"
    assert command(draft, output, "--vocabulary", vocabulary)[0] == 0
    config, weights = json.loads((output / "config.json").read_text()), load_file(output / "model.safetensors")
    kept = weights["d2t"] + torch.arange(11)
    assert (config["draft_vocab_size"], config["vocab_size"]) == (11, 61)
    assert torch.equal(kept, torch.from_numpy(np.load(vocabulary / "t2d.npy")).nonzero()[:, 0])
    assert torch.equal(weights["lm_head.weight"], hass_draft.lm_head.weight[kept])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.unlink(), "vocabulary: found [Errno 2]"),
        (
            lambda file: edit(file, draft_vocab_size=61),
            "draft_vocab_size: found 61, expected fewer",
        ),
        (lambda file: edit(file, draft_vocab_size=12), "d2t: found int64 (11,), expected"),
        (lambda file: edit(file, digest="0" * 16), "vocabulary: found a map with hash"),
    ],
)
def test_another_vocabulary_is_refused(command, hass_draft, tmp_path, vocabulary, spoil, said):
    spoil(vocabulary / "vocabulary.json")
    code, found = command(save_draft(hass_draft, tmp_path / "draft"), tmp_path / "folded", "--vocabulary", vocabulary)
    assert (code, (tmp_path / "folded").exists()) == (2, False)
    assert said in found


def test_what_cannot_be_folded_or_would_be_overwritten_is_refused(command, hass_draft, settings, tmp_path):
    whole, other = save_draft(hass_draft, tmp_path / "whole"), save_draft(eagle3.build(settings()), tmp_path / "eagle3")
    with torch.no_grad():
        hass_draft.embed_layernorm.weight.fill_(3e38)
    large, folded = save_draft(hass_draft, tmp_path / "large"), tmp_path / "folded"
    for draft, output, said in (
        (large, folded, "embed_tokens.weight: found NaN or Inf in torch.float32 once folded"),
        (other, folded, "speculators_model_type: found eagle3, expected hass"),
        (whole, whole, "OUT: found something there, expected a new or empty directory"),
    ):
        code, line = command(draft, output)
        assert (code, folded.exists()) == (2, False)
        assert said in line
