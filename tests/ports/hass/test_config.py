"""What a HASS draft's config has of its own: the alignment, which the command line decides and the config checks."""

import pytest

from ports.hass.config import load_draft_config
from ports.training.alignment import Alignment
from ports.training.saving import save_draft


@pytest.fixture
def load(fixture):
    return lambda path, alignment: load_draft_config(str(path), str(fixture / "verifier"), 3, alignment)


def test_the_flag_says_the_alignment(load, fixture, lively_draft, tmp_path):
    assert load(fixture / "draft_hass.json", Alignment.PROTOTYPE).ttt_alignment == "prototype"
    assert load(save_draft(lively_draft(), tmp_path / "draft"), Alignment.CHAIN).ttt_alignment == "chain"
