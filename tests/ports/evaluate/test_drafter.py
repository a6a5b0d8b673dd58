"""A checkpoint is opened whole or refused, its untrained twin is what training starts from, and stock drafts compute
what Speculators' own forward does."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from speculators.models.eagle3 import Eagle3DraftModel
from transformers import AutoConfig, LlamaConfig, Qwen3Config

from ports.evaluate.drafter import drafter_of, open_draft, untrained
from ports.evaluate.sampling import Choice
from ports.evaluate.verifier import KVCache, TargetModel
from ports.training.saving import save_draft
from ports.verifier.loading import load_verifier
from tests.ports.conftest import edit, edit_tensors, enliven


def test_where_training_ran_does_not_matter(build, fixture, tmp_path, monkeypatch):
    (fixture / "link").symlink_to("verifier")
    monkeypatch.chdir(fixture)
    directory = save_draft(build(basepath="data_hass/../link"), tmp_path / "draft")
    monkeypatch.chdir(tmp_path)
    assert open_draft(directory).config.speculators_config.verifier.name_or_path == str(fixture / "verifier")


def test_the_verifier_may_have_moved(pair, tmp_path, refuses):
    moved = shutil.move(pair.verifier, tmp_path / "moved")
    with refuses(pair.directory / "config.json", "verifier", str(pair.verifier), "one that is there: --verifier"):
        open_draft(pair.directory)
    again = open_draft(pair.directory, str(moved))
    assert torch.equal(again.embed_tokens.weight, pair.draft.embed_tokens.weight)
    assert again.config.speculators_config.verifier.name_or_path == str(moved)


def test_a_verifier_that_was_moved_beside_the_draft_is_found_there(pair, tmp_path):
    """To another machine, where the place that the config names is nobody's."""
    directory = shutil.move(pair.directory, tmp_path / "away" / "draft")
    beside = Path(shutil.move(pair.verifier, tmp_path / "away" / pair.verifier.name))
    assert open_draft(Path(directory)).config.speculators_config.verifier.name_or_path == str(beside)


def test_untrained_is_the_start_of_training(pair, build):
    fresh, again, other = untrained(pair.draft, 3), untrained(pair.draft, 3), untrained(pair.draft, 4)
    names = [name for name, value in pair.draft.named_parameters() if value.requires_grad and value.dim() == 2]
    for name in set(names) - {"lm_head.weight", "embed_tokens.weight"}:
        assert torch.equal(fresh.get_parameter(name), again.get_parameter(name))
        assert not torch.equal(fresh.get_parameter(name), other.get_parameter(name))
        assert not torch.equal(fresh.get_parameter(name), pair.draft.get_parameter(name))
    torch.manual_seed(3)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in build().state_dict().items())


def renamed_or_filled(name, factor):
    """The weights with ``fc.weight`` times ``factor``, under another ``name``."""

    def spoil(weights):
        weights[name] = weights.pop("fc.weight") * factor

    return lambda directory: edit_tensors(directory / "model.safetensors", spoil)


def config(**values):
    return lambda directory: edit(directory / "config.json", **values)


OTHER = {"model_type": "gpt_oss"}
SPOILT = [
    (renamed_or_filled("fc", 1), "tensors", "fc.weight", "exactly the draft's tensors"),
    (renamed_or_filled("fc.weight", torch.nan), "fc.weight", "NaN or Inf", "finite values"),
    (renamed_or_filled("fc.weight", torch.inf), "fc.weight", "NaN or Inf", "finite values"),
    (lambda directory: (directory / "model.safetensors").write_bytes(b"\0" * 64), "resume", "", "safetensors"),
    (lambda directory: (directory / "config.json").unlink(), "DRAFT", "no config.json", "checkpoint"),
    (config(speculators_model_type="dflash"), "speculators_model_type", "dflash", "eagle3 or hass"),
    (config(speculators_model_type=["hass"]), "speculators_model_type", "['hass']", "eagle3 or hass"),
    (config(speculators_config=...), "speculators_config", "nothing", "the verifier's name"),
    (config(transformer_layer_config=OTHER), "transformer_layer_config.model_type", "gpt_oss", "no such"),
]
LAYERS = "eagle_aux_hidden_state_layer_ids"
EAGLE3 = [
    (config(**{LAYERS: [1, 2, 9]}), LAYERS, "[1, 2, 9]", "which has 8"),
    (config(**{LAYERS: [-1, 2, 3]}), LAYERS, "[-1, 2, 3]", "which has 8"),
    (config(target_hidden_size=64), "target_hidden_size", "64", "32, hidden_size"),
]


def test_a_checkpoint_that_is_not_a_whole_draft_of_its_verifier_is_refused(pair, tmp_path, refuses):
    kind = pair.draft.config.speculators_model_type
    for number, (spoil, field, found, expected) in enumerate([*SPOILT, *(EAGLE3 if kind == "eagle3" else ())]):
        copy = shutil.copytree(pair.directory, tmp_path / str(number))
        spoil(copy)
        with refuses(copy, field, found, expected):
            open_draft(copy)
    edit(pair.verifier / "config.json", hidden_size=64)
    with refuses(pair.verifier, "hidden_size", "64", "32"):
        open_draft(pair.directory)


STOCK = [{}, *({name: True} for name in ("norm_before_fc", "fc_norm", "norm_output")), {"norm_before_residual": True}]
WINDOW = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4, "use_sliding_window": True}


def stock_draft(fixture, folder, layer=None, **switches):
    """A draft by Speculators' own classes, saved; gives the directory and the model in its own dense attention."""
    verifier = str(fixture / "verifier")
    config = AutoConfig.from_pretrained(verifier).to_dict()
    config |= {"num_hidden_layers": 1, "attn_implementation": "sdpa", **(layer or {})}
    kind = Qwen3Config if layer else LlamaConfig
    maps = {name: torch.from_numpy(np.load(fixture / f"{name}.npy")) for name in ("t2d", "d2t")}
    draft = Eagle3DraftModel.from_training_args(
        kind(**{name: value for name, value in config.items() if name not in ("model_type", "architectures")}),
        **{"norm_before_residual": False, **switches, **maps},
        draft_vocab_size=len(maps["d2t"]),
        ttt_steps=3,
        target_layer_ids=[2, 4, 5],
        verifier_name_or_path=verifier,
        draft_attn_impl="sdpa",
    )
    enliven(draft.requires_grad_(True))
    draft.save_pretrained(folder)
    return folder, draft.eval()


def logits_of(draft, compute):
    """Everything that the draft's head says meanwhile."""
    said = []
    hook = draft.lm_head.register_forward_hook(lambda module, inputs, out: said.append(out.detach()))
    compute()
    hook.remove()
    return said


@pytest.mark.parametrize(
    ("switches", "layer", "steps"),
    [*((each, None, 3) for each in STOCK), ({"norm_output": True}, {"num_hidden_layers": 2, **WINDOW}, 1)],
)
def test_a_stock_draft_says_what_speculators_forward_says(fixture, tmp_path, prompts, cpu, switches, layer, steps):
    """A proposal after a text, and Speculators' forward on the text with that proposal, which it reads as given.

    Its training lets a window grow with the steps, unlike a server: with one, only the first step is the same.
    """
    directory, theirs = stock_draft(fixture, tmp_path / "stock", layer, **switches)
    target = TargetModel(load_verifier(str(fixture / "verifier"), "float32", cpu, head=True), None)
    drafter = drafter_of(open_draft(directory))
    target.features = drafter.features
    block = target.prefill([prompts[2]])
    proposal = []
    found = logits_of(
        drafter.model, lambda: proposal.append(drafter.propose(KVCache(1, cpu), block, 3, Choice()).tokens)
    )
    ids, end = torch.cat([block.ids, proposal[0]], dim=1), block.ids.shape[1] - 1
    features = torch.nn.functional.pad(block.features, (0, 0, 0, 3))
    documents = torch.zeros_like(ids)
    wanted = logits_of(theirs, lambda: theirs(hidden_states=features, input_ids=ids, document_ids=documents))
    assert len(found) == len(wanted) == 3
    for ours, logits in zip(found[:steps], wanted):
        torch.testing.assert_close(ours[0], logits[0, end], rtol=1e-5, atol=1e-5)


def test_a_stock_draft_that_names_no_layers_reads_speculators_own(fixture, tmp_path):
    directory, _ = stock_draft(fixture, tmp_path / "stock")
    edit(directory / "config.json", eagle_aux_hidden_state_layer_ids=None)
    expected = Eagle3DraftModel.from_pretrained(directory).config.eagle_aux_hidden_state_layer_ids
    assert open_draft(directory).config.eagle_aux_hidden_state_layer_ids == expected
