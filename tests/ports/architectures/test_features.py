"""The verifier's hidden states, as records have them."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from ports.generate.records import geometry_of
from ports.training.online import FeatureReader
from ports.training.records import list_records, read_record
from ports.verifier.loading import load_verifier, verifier_parameters
from tests.ports.conftest import edit

LAYERS = [3, 4, 5]


def texts(tiny):
    return [read_record(file, {}, 512)["input_ids"] for file in list_records(tiny.folder / "data_eagle3")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_precision_may_be_named_outside_of_the_text_model(own_verifier, dtype):
    own = own_verifier / "config.json"
    edit(own, lambda config: config.get("text_config", {}).pop("torch_dtype", None), torch_dtype=dtype)
    model = load_verifier(str(own_verifier), "auto", "cpu")
    features = FeatureReader(model, LAYERS)([torch.arange(5)])[0]
    assert str(features["hidden_state"].dtype) == f"torch.{dtype}"
    assert geometry_of("eagle3", str(own_verifier)).dtype == dtype


def test_records_hold_the_named_layers_and_the_state_after_the_norm(tiny):
    judge = load_verifier(str(tiny.verifier), "float32", torch.device("cpu"), head=True)
    for file in list_records(tiny.folder / "data_eagle3")[:2]:
        record = load_file(file)
        with torch.no_grad():
            output = judge(input_ids=record["input_ids"][None], output_hidden_states=True, use_cache=False)
        fused = torch.cat([output.hidden_states[layer] for layer in LAYERS], dim=-1)[0]
        torch.testing.assert_close(record["hidden_state"], fused, rtol=0, atol=1e-5)
        torch.testing.assert_close(judge.lm_head(record["target"]), output.logits[0], rtol=0, atol=1e-5)
        other = load_file(tiny.folder / "data_hass" / file.relative_to(tiny.folder / "data_eagle3"))
        torch.testing.assert_close(other["hidden_state"], record["target"], rtol=0, atol=1e-5)


def test_the_verifiers_size_is_known_from_its_config_alone(tiny, tmp_path):
    shutil.copy(tiny.verifier / "config.json", tmp_path)
    model = load_verifier(str(tiny.verifier), "auto", "cpu")
    assert verifier_parameters(str(tmp_path)) == sum(value.numel() for value in model.parameters())


def test_a_batch_gives_what_every_text_gives_alone(tiny):
    reader = FeatureReader(load_verifier(str(tiny.verifier), "auto", "cpu"), LAYERS)
    dialogues = [ids[:length] for ids, length in zip(texts(tiny), (60, 7, 33, 1), strict=False)]
    for ids, together in zip(dialogues, reader(dialogues), strict=True):
        (alone,) = reader([ids])
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=0, atol=1e-5)
