"""EAGLE's and SpecForge's checkpoints, opened by Speculators' converter: what it leaves out or random is named."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from speculators.convert import convert_model

from parity.fixtures.architectures import ARCHITECTURES, build_architecture
from parity.fixtures.architectures.architecture import llama_draft
from ports.check.command import check
from ports.check.converted import look_at_conversion
from ports.errors import InputError
from tests.ports.conftest import edit, edit_tensors

DRAFT_VOCAB_SIZE = 256
AUX = [2, 3, 5]
"""Entries of hidden states that are no default."""


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    return build_architecture(ARCHITECTURES["llama"], tmp_path_factory.mktemp("verifier") / "verifier")


@pytest.fixture
def original(tmp_path):
    """A tiny draft of drawn weights under EAGLE's names."""
    folder = tmp_path / "original"
    folder.mkdir()
    said = {**llama_draft(), "draft_vocab_size": DRAFT_VOCAB_SIZE, "rms_norm_eps": 1e-5, "rope_theta": 5e4}
    (folder / "config.json").write_text(json.dumps({**said, "architectures": ["LlamaForCausalLMEagle3"]}))
    h, inner, head = said["hidden_size"], said["intermediate_size"], said["head_dim"]
    heads, groups = said["num_attention_heads"] * head, said["num_key_value_heads"] * head
    shapes = {
        "fc": (h, 3 * h),
        "norm": (h,),
        "lm_head": (said["draft_vocab_size"], h),
        **{f"midlayer.{name}": (h,) for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm")},
        **{f"midlayer.self_attn.{name}_proj": (width, 2 * h) for name, width in zip("qkv", (heads, groups, groups))},
        "midlayer.self_attn.o_proj": (h, heads),
        **{f"midlayer.mlp.{name}_proj": (inner, h) for name in ("gate", "up")},
        "midlayer.mlp.down_proj": (h, inner),
    }
    drawn = torch.Generator().manual_seed(0)
    held = {f"{name}.weight": torch.randn(shape, generator=drawn) / h**0.5 for name, shape in shapes.items()}
    held |= {f"{name}.weight": 1 + held[f"{name}.weight"] for name in shapes if "norm" in name}
    t2d = torch.arange(said["vocab_size"]) % 2 == 0
    held |= {"t2d": t2d, "d2t": t2d.nonzero()[:, 0] - torch.arange(DRAFT_VOCAB_SIZE)}
    torch.save(held, folder / "pytorch_model.bin")
    return folder


def change(folder, config=lambda said: None, tensors=lambda held: None):
    """Of either side."""
    edit(folder / "config.json", config)
    if not (file := folder / "pytorch_model.bin").exists():
        return edit_tensors(folder / "model.safetensors", tensors)
    tensors(held := torch.load(file, weights_only=True))
    return torch.save(held, file)


@pytest.fixture
def converted(original, verifier, tmp_path):
    """``converted(**options)``: what Speculators makes of it, and what the check of that finds."""

    def convert(spoil=lambda folder: None, **options):
        folder = tmp_path / "converted"
        convert_model(str(original), str(verifier), "eagle3", str(folder), **options)
        spoil(folder)
        return next(each for each in check(folder, None, None, [], original=original) if each.step in ("converted",))

    return convert


def in_safetensors(original):
    file = original / "pytorch_model.bin"
    save_file(torch.load(file, weights_only=True), original / "model.safetensors", {"format": "pt"})
    file.unlink()


def as_specforge(original):
    """Layers are counted after which, not before which, features are taken."""
    in_safetensors(original)
    ids = {"eagle_aux_hidden_state_layer_ids": [each - 1 for each in AUX]}
    change(original, lambda said: said.update(eagle_config=ids))


@pytest.mark.parametrize(
    ("form", "options"), [(id, {}), (in_safetensors, {}), (as_specforge, {"eagle_aux_hidden_state_layer_ids": AUX})]
)
def test_a_conversion_computes_what_the_original_does(original, converted, form, options):
    form(original)
    found = converted(**options)
    assert found.state == "ok", found


def misspelt(held):
    held["midlayer.hidden_layernorm.weight"] = held.pop("midlayer.hidden_norm.weight")


def drawn(name):
    return lambda held: held.update({name: torch.randn(held[name].shape, generator=torch.Generator().manual_seed(9))})


def layer(**values):
    return lambda folder: change(folder, lambda said: said["transformer_layer_config"].update(values))


FAULTS = {
    "a name that the converter does not know": (
        lambda original: change(original, tensors=misspelt),
        lambda folder: None,
        {},
        "layers.0.hidden_norm.weight: not in the original, left as drawn; layers.0.hidden_layernorm.weight: of the",
    ),
    "a tensor left random": (
        id,
        lambda folder: change(folder, tensors=drawn("layers.0.mlp.up_proj.weight")),
        {},
        "layers.0.mlp.up_proj.weight: not the original's numbers",
    ),
    "other feature layers": (as_specforge, lambda folder: None, {}, "the original's of [2, 3, 5]"),
    "a norm elsewhere": (id, lambda folder: None, {"norm_before_residual": True}, "step 1: the original's forward"),
    "another rope": (id, layer(rope_parameters={"rope_type": "default", "rope_theta": 1e4}), {}, "step 1: the orig"),
    "another eps": (id, layer(rms_norm_eps=1e-3), {}, "step 1: the original's forward"),
}
SAID = {
    "a norm elsewhere": "norm_before_residual True",
    "another rope": "the original's {'rope_theta': 50000.0",
    "another eps": "rms_norm_eps 0.001, the original's 1e-05",
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_converter_does_wrong_is_named(original, converted, name):
    before, after, options, words = FAULTS[name]
    before(original)
    found = converted(after, **options)
    assert found.state == "fault"
    assert words in found.figure, found
    assert SAID.get(name, "convert it") in found.advice


def test_what_is_no_original_is_said(original, converted):
    (original / "config.json").write_text("{}")
    change(original, tensors=lambda held: [held.pop(name) for name in [*held] if "midlayer" in name])
    model = SimpleNamespace(config=None)
    with pytest.raises(InputError, match=r"--converted-from: found no midlayer among 5 tensors"):
        look_at_conversion(model, original, original, 3)
    (original / "pytorch_model.bin").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"pytorch_model\.bin: --converted-from"):
        look_at_conversion(model, original, original, 3)
