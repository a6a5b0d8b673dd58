"""Every form of a prompt file, and what is refused."""

import json

import pytest
from transformers import AutoTokenizer

from parity.fixtures.tokenizer import ANSWER_HEADER, VOCAB_SIZE, build_tokenizer
from ports.evaluate.prompts import family_of, read_questions
from ports.generate.families import load_family


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(str(build_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture
def read(tmp_path, tokenizer):
    """The prompts of a file of these values, or of this text."""

    def read(*values, name="p.json", text=None, **options):
        (tmp_path / name).write_text(json.dumps(values) if text is None else text, encoding="utf-8")
        return read_questions(tmp_path / name, lambda: tokenizer, VOCAB_SIZE, **options)

    return read


def test_ids_are_taken_as_they_are_and_need_no_tokenizer(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('[5, 6, 7]\n\n{"prompt_token_ids": [1]}\n')
    assert [prompt.ids for prompt in read_questions(file, None, 8)] == [[5, 6, 7], [1]]


U, A, S = ({"role": role, "content": f"{role}?"} for role in ("user", "assistant", "system"))
SHARED = {"user": "human", "assistant": "gpt"}
ASKED = [
    ("The tide is out.", "The tide is out."),
    ({"prompt": "Why?"}, "Why?"),
    ({"messages": [U, A, U, A]}, [U, A, U]),
    ({"messages": [S, U]}, [S, U]),
    ({"conversations": [{"from": SHARED[t["role"]], "value": t["content"]} for t in (U, A, U, A)]}, [U, A, U]),
    ({"question": "user?", "answer": "#### 1"}, [U]),
    ({"text": "user?"}, [U]),
]


@pytest.mark.parametrize(("value", "asked"), ASKED)
def test_a_text_is_tokenised_as_a_server_does_and_a_conversation_up_to_the_last_turn_of_a_user(
    read, tokenizer, value, asked
):
    """In the chat template, with one first token; a .json, a .jsonl and a .txt say the same, and a limit fewer."""
    texts = isinstance(asked, str)
    wanted = asked if texts else tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert texts or wanted.endswith(f"user?<|eot_id|>{ANSWER_HEADER}")
    ids = tokenizer(wanted, add_special_tokens=texts)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    files = [read(value, value, [7], limit=2), read(text=f"{json.dumps(value)}\n\n" * 2, name="p.jsonl")]
    files += [read(text=f"{value}\n \n" * 2, name="p.txt")] if isinstance(value, str) else []
    assert [[prompt.ids for prompt in each] for each in files] == [[ids, ids]] * len(files)


def test_of_eagle_s_questions_a_turn_is_asked_after_the_answer_to_the_one_before(read, tokenizer):
    question = {"question_id": 81, "category": "writing", "turns": ["One?", "Two?", "Three?"], "reference": []}
    said = [("user", "One?"), ("assistant", "Yes."), ("user", "Two?"), ("assistant", ""), ("user", "Three?")]
    turns = [{"role": role, "content": text} for role, text in said]
    (prompt,) = read(text=json.dumps(question), name="question.jsonl")
    asked = [prompt, prompt.ask_on([*tokenizer("Yes.", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])]
    asked.append(asked[-1].ask_on([]))
    wanted = [prompt.ids for prompt in read(*({"messages": turns[:end]} for end in (1, 3, 5)))]
    assert [each.ids for each in asked] == wanted
    assert asked[-1].ask_on is None


@pytest.mark.parametrize(
    ("name", "text", "field", "found"),
    [
        ("p.jsonl", "[1, 2\n", "--prompts", "Expecting"),
        ("p.json", "3", "--prompts", "int"),
        ("p.json", '[{"prompt": "\\ud800"}]', "entry 0", "a lone surrogate"),
        ("p.jsonl", '{"messages": [{"role": "user", "content": [{"text": "a"}]}]}', "line 1", "content: found [{"),
        ("p.jsonl", '{"messages": {"role": "user", "content": "a"}}', "line 1", "messages: found {"),
        ("p.txt", "\n \n", "prompts", "nothing"),
        ("p.jsonl", "[1]\n[-1]", "line 2", "ids in [-1, -1]"),
        ("p.jsonl", "[1, 512]", "line 1", "ids in [1, 512]"),
        ("p.jsonl", "[]", "line 1", "[]"),
        ("p.jsonl", "[true]", "line 1", "[True]"),
        ("p.jsonl", '{"prompt_token_ids": "a"}', "line 1", "'a'"),
        ("p.json", '[{"texts": 1}]', "entry 0", "nothing in texts"),
        ("p.json", '[{"messages": [{"role": "robot", "content": ""}]}]', "entry 0", "role: found 'robot'"),
        ("p.json", '[{"messages": [{"role": "assistant", "content": "Hi"}]}]', "entry 0", "no turn of a user"),
        ("p.jsonl", '{"turns": "Why?"}', "line 1", "turns: found 'Why?'"),
        ("p.jsonl", '{"turns": ["Why?", "\\udfff"]}', "line 1", "turn: found a lone surrogate"),
    ],
)
def test_other_files_are_refused(read, refuses, tmp_path, name, text, field, found):
    """A later turn is refused as early as the first."""
    with refuses(tmp_path / name, field, found, ""):
        read(text=text, name=name)


def test_conversations_are_rendered_as_the_records_of_the_draft(tmp_path, read, tokenizer, refuses):
    made = tmp_path / "generation.json"
    made.write_text('{"algorithm": "eagle3", "chat": {"system": "Be brief.", "today": "2024-01-02"}}')
    own, plain = (read({"text": "Hi"}, family=family_of(tmp_path, named))[0].ids for named in ("", "auto"))
    assert "Be brief." in tokenizer.decode(own)
    assert "Be brief." not in tokenizer.decode(plain)
    assert family_of(tmp_path).variables["strftime_now"]("%d %m %Y") == "02 01 2024"
    assert family_of(tmp_path / "nowhere") == load_family("auto")
    for content in ('{"chat": {"system": 7}}', "[]"):
        made.write_text(content)
        with refuses(made, "chat", "", ""):
            family_of(tmp_path)


def test_a_tokenizer_without_a_template_takes_the_family_s_or_is_refused(tmp_path, read, tokenizer, refuses):
    bare = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    bare.chat_template = None
    read({"text": "Hi"})
    (found,) = read_questions(tmp_path / "p.json", lambda: bare, VOCAB_SIZE, load_family("chatml"))
    assert bare.decode(found.ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    with refuses(tmp_path / "p.json", "entry 0", "chat_template", "chat template"):
        read_questions(tmp_path / "p.json", lambda: bare, VOCAB_SIZE)
