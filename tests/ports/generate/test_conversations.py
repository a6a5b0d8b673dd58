import json

import httpx
import pytest
from datasets import Dataset
from huggingface_hub.errors import RepositoryNotFoundError
from hypothesis import given
from hypothesis import strategies as st

from parity.fixtures.conversations import SHAREGPT, ULTRACHAT
from ports.errors import InputError
from ports.generate import conversations
from ports.generate.conversations import ConversationError, dialogue_of, load_conversations, split_range


def test_sharegpt_is_shuffled_with_seed_42_and_ultrachat_is_not():
    rows, share = json.loads(SHAREGPT.read_text()), load_conversations("sharegpt", str(SHAREGPT), "sft")
    shuffled = list(Dataset.from_dict({"row": range(len(rows))}).shuffle(seed=42)["row"])
    assert list(share.order) == shuffled != list(range(len(rows)))
    assert share.messages(0)[0]["content"] == rows[shuffled[0]]["conversations"][0]["value"]
    assert list(load_conversations("ultrachat", str(ULTRACHAT), "sft").order) == list(range(20))


def test_a_first_turn_of_the_assistant_is_dropped_and_only_that():
    turns = [{"from": name, "value": name} for name in ("gpt", "gpt", "human", "gpt", "system")]
    assert [m["content"] for m in dialogue_of({"conversations": turns})] == ["gpt", "human", "gpt", "system"]


BAD = [
    ([], "a list of turns"),
    (None, "nothing in conversations"),
    ([{"from": "gpt", "value": "x"}], "expected a turn of the user"),
    ([{"from": "gpt"}], "expected text"),
    ([{"from": "human", "value": "\ud83d"}], "a lone surrogate"),
    ([{"from": {"a": 1}, "value": "x"}], "one of human"),
    (["human"], "one of human"),
]


@pytest.mark.parametrize(("turns", "expected"), BAD)
def test_a_bad_dialogue_says_why(turns, expected):
    with pytest.raises(ConversationError, match=expected):
        dialogue_of({"conversations": turns})


def test_a_directory_of_files_is_read(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(ULTRACHAT.read_text())
    assert len(load_conversations("ultrachat", str(tmp_path / "data"), "sft")) == 20


TURN = '{"from": "human", "value": "Hi"}'
FILES = [
    ("{", "sharegpt", "data", "a JSON, parquet or text file"),
    (f'[{{"conversations": [null, {TURN}]}}, {{"conversations": [{TURN}]}}]', "sharegpt", "conversations", "no null"),
    ('[{"a": 1}]', "sharegpt", "conversations", "sharegpt rows with conversations"),
    ('[{"a": 1}]', "ultrachat", "messages", "ultrachat rows with messages"),
    ('[{"messages": []}]', "sharegpt", "conversations", "or --dataset ultrachat"),
    ('[{"question": "a"}]', "ultrachat", "messages", "or --dataset any"),
    (None, "sharegpt", "data", "a JSON, parquet or text file, a directory of them, or a hub id"),
]


@pytest.mark.parametrize(("text", "kind", "field", "expected"), FILES)
def test_a_bad_file_is_refused(tmp_path, refuses, text, kind, field, expected):
    file = tmp_path / "rows.json"
    if text is not None:
        file.write_text(text)
    with refuses(file, field, "", expected):
        load_conversations(kind, str(file), "sft")


ABSENT = {
    "x.jsonl": "nothing of that name here",
    "./x": "nothing of that name here",
    "x": "nothing of that name here, nor on the hub: ",
}


@pytest.mark.parametrize(("name", "found"), ABSENT.items())
def test_what_is_neither_a_file_nor_on_the_hub_is_refused_at_once(monkeypatch, refuses, name, found):
    """The hub is asked once; what loads a data set from it would ask for half a minute."""
    asked = []

    def answers(self, name, timeout):
        asked.append(name)
        raise RepositoryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "http://hub")))

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", answers)
    monkeypatch.setattr(conversations, "load_dataset", None)
    with refuses(name, "data", found, conversations.READABLE):
        load_conversations("any", name)
    assert asked == [name] * ("hub" in found)


def test_a_data_set_in_the_cache_is_read_where_the_hub_cannot_be_reached(monkeypatch, tmp_path):
    def answers(self, name, timeout):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", answers)
    monkeypatch.setattr(conversations.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(conversations, "load_dataset", lambda name, *_, **__: Dataset.from_dict({"prompt": [name]}))
    with pytest.raises(InputError, match="nor on the hub: no network"):
        load_conversations("any", "owner/name")
    (tmp_path / "owner___name").mkdir()
    assert load_conversations("any", "owner/name").messages(0)[0]["content"] == "owner/name"


@given(st.integers(0, 500), st.integers(1, 16))
def test_ranges_are_even_and_hold_the_last_row(samples, parts):
    ranges = split_range(samples, parts)
    assert [row for part in ranges for row in part] == list(range(samples + 1))
    sizes = [len(part) for part in ranges]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
