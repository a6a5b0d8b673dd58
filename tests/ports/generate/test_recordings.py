"""Bar of data generation: ids and masks of every recorded script, token by token."""

from __future__ import annotations

import pytest

from docs.tables import encode_recorded
from parity.fixtures.dialogues import recordings
from ports.generate.encode import LossMask

RECORDED = {recording.name: recording for recording in recordings()}


def test_all_nine_scripts_are_recorded() -> None:
    families = {family: sum(r.family == family for r in RECORDED.values()) for family in ("llama", "qwen", "mistral")}
    assert families == {"llama": 5, "qwen": 2, "mistral": 2}
    assert sum(len(recording.samples) for recording in RECORDED.values()) == 41


@pytest.mark.parametrize("name", RECORDED)
def test_ids_and_masks_are_the_prototypes(name: str) -> None:
    recording = RECORDED[name]
    encoded = encode_recorded(recording, LossMask.PROTOTYPE)
    assert [one.ids for one in encoded] == [sample["ids"] for sample in recording.samples]
    assert [one.loss_mask for one in encoded] == [sample["loss_mask"] for sample in recording.samples]


@pytest.mark.parametrize("name", RECORDED)
def test_the_exact_mask_is_another_one(name: str) -> None:
    """The comparison above would notice a mask of the other kind."""
    recording = RECORDED[name]
    exact = encode_recorded(recording, LossMask.EXACT)
    assert [one.ids for one in exact] == [sample["ids"] for sample in recording.samples]
    assert [one.loss_mask for one in exact] != [sample["loss_mask"] for sample in recording.samples]
