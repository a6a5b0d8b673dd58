from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ports.training.data.features import FeatureReader, load_verifier


@pytest.fixture
def dialogues() -> list[torch.Tensor]:
    return [torch.arange(1, 1 + length) for length in (9, 4, 9, 1)]


@pytest.fixture
def model(built_once):
    return load_verifier(str(built_once / "verifier"), "float32", "cpu")


@pytest.mark.parametrize("layers", [[3, 4, 5], None], ids=["eagle3", "hass"])
def test_a_dialogue_has_the_same_features_alone_and_padded(model, dialogues, layers) -> None:
    read = FeatureReader(model, layers)
    for together, ids in zip(read(dialogues), dialogues, strict=True):
        (alone,) = read([ids])
        assert set(together) == set(alone) == ({"hidden_state"} if layers is None else {"hidden_state", "target"})
        for name in alone:
            assert together[name].shape == alone[name].shape
            torch.testing.assert_close(together[name], alone[name])


def test_the_last_entry_is_after_the_final_norm(model, dialogues) -> None:
    before = {}
    handle = model.norm.register_forward_hook(lambda module, inputs, output: before.update(output=output))
    (last,) = FeatureReader(model, None)(dialogues[:1])
    handle.remove()
    assert torch.equal(last["hidden_state"], before["output"][0])


def test_the_layers_come_in_the_order_asked_for(model, dialogues) -> None:
    one, other = (FeatureReader(model, layers)(dialogues[:1])[0]["hidden_state"] for layers in ([1, 2, 3], [3, 2, 1]))
    assert torch.equal(one[:, :32], other[:, 64:])
    assert not torch.equal(one, other)


def test_layers_on_several_devices_meet_where_the_last_state_lies() -> None:
    def verifier(**inputs):
        states = [torch.zeros(1, 2, 3, device=device) for device in ("cpu", "cpu", "cpu", "meta")]
        return SimpleNamespace(hidden_states=states)

    verifier.device = "cpu"
    (fields,) = FeatureReader(verifier, (0, 1, 2))([torch.zeros(2, dtype=torch.int64)])
    assert {name: value.device.type for name, value in fields.items()} == {"hidden_state": "meta", "target": "meta"}


def test_a_verifier_that_cannot_be_loaded_is_refused(tmp_path, refuses) -> None:
    with refuses(tmp_path, "model_path", "", "a model that transformers loads"):
        load_verifier(str(tmp_path), "float32", "cpu")
