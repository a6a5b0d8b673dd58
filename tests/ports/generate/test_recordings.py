"""Bar of data generation: ids and masks of every recorded script, token by token."""

import pytest

from docs.tables import encode_recorded, encoder_of
from parity.fixtures.dialogues import recordings, word_tokenizer
from ports.generate.chat import LossMask
from ports.generate.run import GenerationSettings

RECORDED = {recording.name: recording for recording in recordings()}


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("mask", LossMask)
def test_ids_and_masks_are_the_prototypes(name, mask):
    """The exact mask is another one: the comparison would notice it."""
    recording = RECORDED[name]
    encoded = encode_recorded(recording, mask)
    assert [one.ids for one in encoded] == [sample["ids"] for sample in recording.samples]
    masks = [sample["loss_mask"] for sample in recording.samples]
    assert ([one.loss_mask for one in encoded] == masks) == (mask is LossMask.PROTOTYPE)


@pytest.mark.parametrize("name", RECORDED)
def test_one_flag_gives_all_that_a_script_gives(name, tmp_path):
    recording = RECORDED[name]
    settings = GenerationSettings(
        model_path="v", outdir=tmp_path, dataset=recording.dataset, prototype=recording.family
    )
    encoder, told = settings.encoder(word_tokenizer(recording.family)), encoder_of(recording, LossMask.PROTOTYPE)
    turns = [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": "It is."}]
    if recording.family == "mistral":  # the script's system message is the tokenizer's own, which the words have not
        encoder.family = encoder.family.model_copy(update={"system": told.family.system})
    assert encoder(turns) == told(turns)


def test_nothing_is_put_around_a_dialogue_by_default(tmp_path):
    encoder = GenerationSettings(model_path="v", outdir=tmp_path).encoder(word_tokenizer("llama"))
    assert encoder.loss_mask is LossMask.EXACT
    assert not encoder.leading_space
    assert encoder.family.system is None
