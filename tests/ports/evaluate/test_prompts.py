"""Every form of a prompt file, and what is refused."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from parity.fixtures.conversations import SHAREGPT, ULTRACHAT
from parity.fixtures.tokenizer import ANSWER_HEADER, VOCAB_SIZE, build_tokenizer
from ports.evaluate.prompts import family_of, prompt_of, read_questions
from ports.generate.chat import load_family


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(str(build_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


def ids_of(file, tokenizer, family=None, vocab_size=VOCAB_SIZE) -> list[list[int]]:
    return [prompt.ids for prompt in read_questions(file, lambda: tokenizer, vocab_size, family)]


@pytest.fixture
def read(tmp_path, tokenizer):
    def read(name: str, text: str | None) -> list[list[int]]:
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8")
        return ids_of(tmp_path / name, tokenizer)

    return read


def test_ids_are_taken_as_they_are_and_need_no_tokenizer(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('[5, 6, 7]\n\n{"prompt_token_ids": [1]}\n')
    assert ids_of(file, None, vocab_size=8) == [[5, 6, 7], [1]]


def test_a_text_is_tokenised_as_a_server_does(read, tokenizer):
    expected = [tokenizer("The tide is out.")["input_ids"], tokenizer("Why?")["input_ids"]]
    assert expected[0][0] == tokenizer.bos_token_id
    assert read("prompts.txt", "The tide is out.\n\nWhy?\n") == expected
    assert read("prompts.json", '["The tide is out.", {"prompt": "Why?"}]') == expected


def test_a_conversation_is_read_up_to_the_last_turn_of_a_user(read, tokenizer):
    turns = [("user", "One?"), ("assistant", "Yes."), ("user", "Two?"), ("assistant", "No.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    shares = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in turns]
    found = read("prompts.json", json.dumps([{"messages": messages}, {"conversations": shares}]))
    text = tokenizer.decode(found[0])
    assert found[0] == found[1]
    assert text.endswith(f"Two?<|eot_id|>{ANSWER_HEADER}")
    assert text.count("<|begin_of_text|>") == 1
    assert "No." not in text


def test_of_eagle_s_questions_a_turn_is_asked_after_the_answer_to_the_one_before(read, tokenizer, tmp_path):
    question = {"question_id": 81, "category": "writing", "turns": ["One?", "Two?", "Three?"], "reference": []}
    said = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Yes."}]
    said += [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": ""}]
    said += [{"role": "user", "content": "Three?"}]
    (first,) = read("question.jsonl", json.dumps(question))
    (prompt,) = read_questions(tmp_path / "question.jsonl", lambda: tokenizer, VOCAB_SIZE)
    asked = [prompt, prompt.ask_on([*tokenizer("Yes.", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])]
    asked.append(asked[-1].ask_on([]))
    wanted = [read("p.jsonl", json.dumps({"messages": said[:end]}))[0] for end in (1, 3, 5)]
    assert [each.ids for each in asked] == wanted
    assert first == wanted[0]
    assert asked[-1].ask_on is None


def test_gsm8k_is_read_in_its_own_form(read, tmp_path, tokenizer):
    lines = [{"question": f"{number} and 1?", "answer": f"#### {number + 1}"} for number in range(3)]
    asked = [{"messages": [{"role": "user", "content": line["question"]}]} for line in lines]
    found = read("test.jsonl", "\n".join(map(json.dumps, lines)))
    assert found == read("p.json", json.dumps(asked))
    few = read_questions(tmp_path / "test.jsonl", lambda: tokenizer, VOCAB_SIZE, limit=2)
    assert [each.ids for each in few] == found[:2]


@pytest.mark.parametrize(("file", "count"), [(SHAREGPT, 22), (ULTRACHAT, 20)])
def test_the_shipped_conversations_can_be_read(file, count, tokenizer):
    prompts = ids_of(file, tokenizer)
    assert len(prompts) == count
    assert all(tokenizer.decode(ids).endswith(ANSWER_HEADER) for ids in prompts)


@pytest.mark.parametrize(
    ("roles", "kept"),
    [
        ("uaua", "uau"),
        ("aua", "u"),
        ("sasua", "ssu"),
        ("s", ""),
    ],
)
def test_which_turns_a_prompt_has(roles, kept):
    names = {"u": "user", "a": "assistant", "s": "system"}
    turns = [{"role": names[letter], "content": str(place)} for place, letter in enumerate(roles)]
    assert "".join(turn["role"][0] for turn in prompt_of(turns)) == kept


@pytest.mark.parametrize(
    ("name", "text", "field", "found"),
    [
        ("p.jsonl", "[1, 2\n", "--prompts", "Expecting"),
        ("p.json", "3", "--prompts", "int"),
        ("p.json", '[{"prompt": "\\ud800"}]', "entry 0", "a lone surrogate"),
        ("p.jsonl", '{"messages": [{"role": "user", "content": "\\udfff"}]}', "line 1", "a lone surrogate"),
        ("p.jsonl", '{"messages": [{"role": "user", "content": [{"text": "a"}]}]}', "line 1", "content: found [{"),
        ("p.jsonl", '{"messages": {"role": "user", "content": "a"}}', "line 1", "messages: found {"),
        ("p.txt", "\n \n", "prompts", "nothing"),
        ("p.jsonl", "[1, 512]", "line 1", "ids in [1, 512]"),
        ("p.jsonl", "[1]\n[-1]", "line 2", "ids in [-1, -1]"),
        ("p.jsonl", "[]", "line 1", "[]"),
        ("p.jsonl", "[true]", "line 1", "[True]"),
        ("p.jsonl", '{"prompt_token_ids": "a"}', "line 1", "'a'"),
        ("p.json", '[{"texts": 1}]', "entry 0", "nothing in texts"),
        ("p.json", '[{"messages": [{"role": "robot", "content": ""}]}]', "entry 0", "role: found 'robot'"),
        ("p.json", '[{"messages": [{"role": "assistant", "content": "Hi"}]}]', "entry 0", "no turn of a user"),
        ("p.jsonl", '{"turns": "Why?"}', "line 1", "turns: found 'Why?'"),
        ("p.jsonl", '{"turns": ["Why?", "\\udfff"]}', "line 1", "a lone surrogate"),
        ("none.txt", None, "--prompts", "No such file"),
    ],
)
def test_other_files_are_refused(read, refuses, tmp_path, name, text, field, found):
    with refuses(tmp_path / name, field, found, ""):
        read(name, text)


BRIEF = {"system": "Be brief.", "today": "2024-01-02"}


def write_made(folder, **changes):
    (folder / "generation.json").write_text(json.dumps({"algorithm": "eagle3", "chat": BRIEF, **changes}))
    return folder


def test_conversations_are_rendered_as_the_records_of_the_draft(tmp_path, tokenizer):
    prompts = tmp_path / "p.json"
    prompts.write_text('[{"messages": [{"role": "user", "content": "Hi"}]}]')
    texts = {
        named: tokenizer.decode(ids_of(prompts, tokenizer, family_of(draft, named))[0])
        for draft, named in ((write_made(tmp_path), ""), (tmp_path, "auto"))
    }
    assert "Be brief." in texts[""]
    assert "Be brief." not in texts["auto"]
    assert family_of(tmp_path).variables["strftime_now"]("%d %m %Y") == "02 01 2024"
    assert family_of(tmp_path / "nowhere") == load_family("auto")


def test_a_tokenizer_without_a_template_takes_the_family_s_or_is_refused(tmp_path, tokenizer, refuses):
    prompts = tmp_path / "p.json"
    prompts.write_text('[{"messages": [{"role": "user", "content": "Hi"}]}]')
    bare = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    bare.chat_template = None
    found = ids_of(prompts, bare, load_family("chatml"))
    assert bare.decode(found[0]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    with refuses(prompts, "entry 0", "chat_template", "chat template"):
        ids_of(prompts, bare)


@pytest.mark.parametrize(("changes", "field"), [({"chat": {"system": 7}}, "chat"), ({"chat": 7}, "chat")])
def test_a_draft_that_says_nonsense_of_its_records_is_refused(tmp_path, refuses, changes, field):
    with refuses(tmp_path / "generation.json", field, "", ""):
        family_of(write_made(tmp_path, **changes))
