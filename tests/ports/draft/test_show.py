"""What a directory holds, on the terminal."""

import pytest

from ports import cli
from ports.draft.card import write_pages
from ports.draft.settings import DraftSettings
from tests.ports.draft.test_card import made, unpictured  # noqa: F401
from tests.ports.generate.conftest import flags, generate  # noqa: F401


@pytest.fixture
def shown(capsys):
    """What is printed about a directory, without the terminal's line breaks."""

    def show(*words):
        assert cli.main(["show", *map(str, words)]) == 0
        return " ".join(capsys.readouterr().out.split())

    return show


def test_a_run_its_draft_and_a_draft_without_a_card(made, shown):  # noqa: F811
    settings: DraftSettings = made()
    unmade = shown(settings.out)
    assert "run.json" in unmade
    assert "What is accepted" not in unmade
    assert "Where this directory lies as draft" in unmade
    write_pages(settings)
    for place in (settings.out, settings.out / "draft"):
        told = shown(place)
        assert "What is accepted" in told
        assert "library_name" not in told


def test_records_and_their_dialogues(generate, shown, verifier):  # noqa: F811
    records = generate()
    assert shown(records).startswith("Records for Eagle3 drafts 8 records, ")
    told = shown(records, "--verifier", verifier, "--rows", 2)
    assert told.count("tokens in the loss ") == 2


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("other", "", "no run.json, config.json, generation.json, expected a run of"),
        ("config.json", '{"model_type": "llama"}', "content: found no entry 'speculators_config', expected files as"),
        ("generation.json", "{}", "expected files as the commands of speculator write them"),
        ("generation.json", "[", "generation.json: manifest: found "),
    ],
)
def test_what_is_not_known_or_not_whole(tmp_path, capsys, file, content, said):
    (tmp_path / file).write_text(content)
    (tmp_path / "data_0.safetensors").touch()
    assert cli.main(["show", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
