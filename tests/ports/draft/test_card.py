"""What a run says of itself: a card that the hub reads, whose figures are the evaluation's and whose line serves."""

import json
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markupsafe import Markup

from ports.draft import card as module
from ports.draft.card import CARD, PICTURE, Names, write_pages
from ports.draft.settings import DraftSettings
from ports.evaluate.acceptance import Counted, figures, in_json
from ports.evaluate.intervals import from_json
from ports.verifier.config import hub_id

HOSTILE = "a|b `c`` <script>x</script> [d](e) **f**\n---\n```\n# g $h$"


def evaluation(name="held_out.jsonl", **changes):
    counts = [(9, 4, 2), (8, 5, 1), (7, 7, 7)]
    rows = [
        Counted(prompt=place, key="", tokens=20, drafts=row[0], accepted_per_position=row[1:])
        for place, row in enumerate(counts)
    ]
    told = in_json(figures(rows, 2))
    file = {"name": name, "prompts": 3, "tokens": 60, "intervals": told, "acceptance_length": 2.0}
    common = {"algorithm": "eagle3", "speculative_tokens": 2, "length": 20, "temperature": 0.0}
    told = {"lossless": True, "near_ties": 1, "contexts": {"under 512": told["acceptance_length"]}}
    return {**common, **told, "files": [file], **changes}


@pytest.fixture(autouse=True)
def unpictured(monkeypatch):
    """Pictures take a second each."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "find_spec", lambda name: None)
        yield patch


@pytest.fixture
def made(tmp_path, verifier):
    """A run that is done, as far as its pages read it; gives its settings."""

    def make(verifier=verifier, data=tmp_path / "train.jsonl", check=None, **changes):
        out = tmp_path / "out"
        for name in ("data", "records", "checkpoints", "draft"):
            (out / name).mkdir(parents=True, exist_ok=True)
        proposed = {"proposal_methods": [{"speculative_tokens": 2}], "verifier": {"name_or_path": str(verifier)}}
        config = {"speculators_model_type": "eagle3", "speculators_config": proposed, "draft_vocab_size": 512}
        layer = {"num_hidden_layers": 1, "hidden_size": 32}
        records = {"algorithm": "eagle3", "verifier": "f", "tokens": 1234, "supervised": 999, "dtype": "float32"}
        settings = DraftSettings(model=str(verifier), data=str(data), out=out, samples=8, passes=2)
        run = {"answers": "own", "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 20, "passes": 2, "bs": 1}
        told = {
            "draft/config.json": {**config, "transformer_layer_config": layer},
            "records/generation.json": {**records, "feature_layers": [2, 4, 6]},
            "run.json": {**run, "lr": 1e-4, "mixed_precision": "no", "forward_num_total": 2, "seed": 0, "done": []},
            "evaluation.json": evaluation(**changes),
            **({"check.json": {"findings": check}} if check else {}),
        }
        for name, content in told.items():
            (out / name).write_text(json.dumps(content))
        (out / "data/train.jsonl").write_text("{}\n" * 8)
        steps = [{"step": step, "train/loss": 1 / (1 + step)} for step in range(300)]
        lines = [*steps, {"steps": 300, "val_expected_acceptance": 2.0}]
        (out / "checkpoints/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return settings

    return make


def written(settings):
    write_pages(settings)
    return ModelCard.load(settings.out / "draft" / CARD)


def tables(text):
    """Of every table its rows, of every row its cells, as they are read."""
    found = []
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    for token in tokens:
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level >= 4:
            found[-1][-1].append("".join(part.content for part in token.children))
    return found


def test_the_card_is_the_hubs_and_says_what_was_measured(made, unpictured):
    settings = made()
    assert PICTURE not in written(settings).text
    unpictured.undo()
    card = written(settings)
    assert card.data.to_dict() == {
        "library_name": "speculators",
        "pipeline_tag": "text-generation",
        "tags": ["speculative-decoding", "draft-model", "eagle3"],
    }
    assert "\n# license: to be named" in (settings.out / "draft" / CARD).read_text()
    accepted, contexts, trained = tables(card.text)[:3]
    assert accepted[1] == ["held_out.jsonl", "3", "60", *said(evaluation())]
    assert contexts[1] == ["under 512", said(evaluation())[0]]
    assert ["data", "8 dialogues of train.jsonl"] in trained
    assert "but for near ties (1)" in card.text
    assert f"]({PICTURE})" in card.text
    assert (settings.out / "draft" / PICTURE).read_bytes()[:4] == b"\x89PNG"


def said(content):
    told = content["files"][0]["intervals"]
    return [str(from_json(each)) for each in (told["acceptance_length"], *told["rate_per_position"])]


def test_a_number_that_changes_in_evaluation_changes_in_the_card(made):
    other = evaluation()
    other["files"][0]["intervals"]["rate_per_position"][1]["low"] += 0.25
    (row,) = tables(written(made(files=other["files"])).text)[0][1:]
    assert row[3:] == said(other) != said(evaluation())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lossless": False}, "drafting changed tokens beyond rounding"),
        ({"temperature": 1.0, "lossless": None}, "drawn at temperature 1"),
        ({}, "these are greedy"),
    ],
)
def test_it_says_what_is_wrong_and_what_was_not_measured(made, changes, words):
    files = evaluation()["files"]
    files[0]["intervals"]["expected_length"] = files[0]["intervals"]["acceptance_length"]
    text = written(made(files=files, **changes)).text
    assert words in text
    assert ("these are greedy" in text) == ("temperature" not in changes)


def test_the_line_that_serves_names_what_is_there(made, verifier):
    settings = made()
    (line,) = [line for line in written(settings).text.splitlines() if line.startswith("vllm serve ")]
    words = shlex.split(line)
    assert (settings.out / words[2]).resolve() == verifier.resolve()
    assert words[3:6] == ["--dtype", "float32", "--speculative-config"]
    told = json.loads(words[6])
    assert (settings.out / told.pop("model") / "config.json").is_file()
    assert told == {"method": "eagle3", "num_speculative_tokens": 2}


def test_a_verifier_and_data_of_the_hub_go_by_their_names_there(made, tmp_path, verifier):
    cached = tmp_path / "models--meta-llama--Llama-3.1-8B" / "snapshots" / "0123"
    cached.parent.mkdir(parents=True)
    card = written(made(verifier.rename(cached), "openai/gsm8k:main"))
    assert (card.data.base_model, card.data.datasets) == ("meta-llama/Llama-3.1-8B", ["openai/gsm8k"])
    assert "\nvllm serve meta-llama/Llama-3.1-8B --dtype float32 " in card.text
    assert "stands for" not in card.text


def test_no_path_of_this_machine_stands_in_it(made, tmp_path, monkeypatch):
    found = [{"step": "files", "state": "ok", "figure": f"4 tensors of {tmp_path}/verifier", "advice": ""}]
    settings = made(check=found)
    assert ["files", "ok", "4 tensors of ../verifier"] in tables(written(settings).text)[2]
    monkeypatch.chdir(tmp_path)
    settings.model, settings.data = "verifier", "out/../train.jsonl"
    written(settings)
    for page in (settings.out / "draft" / CARD, settings.out / CARD):
        assert str(tmp_path) not in page.read_text()


def shape(card):
    """Cells of every table's rows, and how often the page has what a name could bring into it."""
    html = MarkdownIt("gfm-like", {"linkify": False}).render(card.text)
    tags = ("<h1", "<h2", "<strong", "<em", "<a ", "<hr", "<script", "<pre", "<li")
    return [list(map(len, table)) for table in tables(card.text)], {tag: html.count(tag) for tag in tags}


@pytest.mark.parametrize("fault", [None, "escaped", "code", "shell"])
def test_names_mean_nothing_to_markdown(made, tmp_path, verifier, monkeypatch, fault):
    """Of verifier, data, prompts and findings; a page that puts them in as they are is another."""
    finding = {"step": "a", "state": "left out", "figure": "b", "advice": ""}
    harmless = shape(written(made(check=[finding])))
    place = verifier.rename(tmp_path / HOSTILE.replace("/", "%"))
    if fault:
        monkeypatch.setattr(Names, fault, lambda self, value: Markup(value))
    found = made(place, HOSTILE, [{**finding, "step": HOSTILE, "figure": HOSTILE}], files=evaluation(HOSTILE)["files"])
    assert (shape(written(found)) == harmless) == (fault is None)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("{}/models--Qwen--Qwen3-0.6B/snapshots/c1899de", "Qwen/Qwen3-0.6B"),
        ("{}/models--gpt2/snapshots/607a30d", "gpt2"),
        ("{}/somewhere/else", None),
        ("/nowhere", None),
        ("a b/c", None),
    ],
)
def test_the_hubs_name_of_a_verifier(tmp_path, place, name):
    place = place.format(tmp_path)
    if place.startswith(str(tmp_path)):
        Path(place).mkdir(parents=True)
    assert hub_id(place) == name
