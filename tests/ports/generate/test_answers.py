"""The verifier's own answers: what they are, that a kill leaves no trace in them, and which engine gave them."""

import json
import os
import signal
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from parity.fixtures.architectures import ARCHITECTURES
from ports import progress
from ports.evaluate.decode import Limits, decode
from ports.evaluate.prompts import read_questions
from ports.generate import answers as module
from ports.generate import engines
from ports.generate.replies import Prompt
from ports.verifier.tokenizer import end_tokens, open_tokenizer
from ports.verifier.vllm import VLLM_ENVIRONMENT
from tests.commands import main_of
from tests.ports.conftest import edit, words_of
from tests.ports.generate.conftest import forking

main = main_of("answers")

SAID = [("human", "Hi"), ("gpt", "Yes"), ("human", "So")]
ROWS = [
    {"question": "What is one and one?", "answer": "Two."},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]},
    {"turns": ["Name a river.", "Another one, in the north."]},
    {"conversations": [{"from": role, "value": text} for role, text in SAID]},
    {"prompt": "Bye"},
]
LENGTH = 9


@pytest.fixture
def ask(verifier, tmp_path):
    """Runs the command on ``rows``; gives its exit code, or what ``run`` makes of its words."""

    def go(rows=ROWS, form="jsonl", run=main, **changes):
        data = tmp_path / f"data.{form}"
        if rows is not None:
            data.write_text("".join(f"{row if form == 'txt' else json.dumps(row)}\n" for row in rows))
        values = {"verifier": verifier, "data": data, "out": tmp_path / "answers" / "a.jsonl", "max_new_tokens": LENGTH}
        return run(words_of({**values, "engine": "transformers", "no-progress": None, **changes}))

    return go


@pytest.fixture
def answered(tmp_path):
    return lambda: [json.loads(line) for line in (tmp_path / "answers" / "a.jsonl").read_text().splitlines()]


def test_every_turn_of_a_user_is_answered_as_the_verifier_decodes_it(ask, answered, verifier):
    """Greedily, whatever the verifier's own generation config says of sampling and penalties."""
    sampled = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 3.0}
    eos = json.loads((verifier / "config.json").read_text())["eos_token_id"]
    (verifier / "generation_config.json").write_text(json.dumps({"eos_token_id": eos, **sampled}))
    assert ask() == 0
    tokenizer, model = open_tokenizer(str(verifier)), AutoModelForCausalLM.from_pretrained(verifier)
    limits, found = Limits(LENGTH, end_tokens(model)), answered()
    assert [sum(turn["role"] == "assistant" for turn in line["messages"]) for line in found] == [1, 1, 2, 2, 1]
    assert [line["messages"][0]["content"] for line in found] == [
        "What is one and one?", "Be brief.", "Name a river.", "Hi", "Bye"
    ]  # fmt: skip
    for line in found:
        reasons = []
        for place, turn in enumerate(line["messages"]):
            if turn["role"] == "assistant":
                said = line["messages"][:place]
                text = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
                tokens = decode(model, [tokenizer(text, add_special_tokens=False)["input_ids"]], limits)[0].tokens
                ended = tokens[-1] in limits.stop
                assert turn["content"] == tokenizer.decode(tokens[: len(tokens) - ended], skip_special_tokens=True)
                reasons.append("stop" if ended else "length")
        assert line["finish_reasons"] == reasons
        assert line["finish_reason"] == ("length" if "length" in reasons else "stop")


REPLIES = [
    ([9] * 8, "8 of 8 answers were cut at --max-new-tokens 9; --max-new-tokens 36 would cut fewer"),
    ([9] * 4 + [4] * 4, "4 of 8 answers were cut at --max-new-tokens 9; --max-new-tokens 36 would cut fewer"),
    ([9] + [4] * 39, "1 of 40 answers were cut at --max-new-tokens 9"),
    ([4] * 8, ""),
]


def test_cut_answers_are_counted_and_a_length_is_proposed(ask, answered, verifier, monkeypatch, capsys):
    """Of all in the file, whichever command wrote them."""
    tokenizer = open_tokenizer(str(verifier))
    for case, (lengths, said) in enumerate(REPLIES):
        replies = iter(lengths)

        def answer(self, prompts, drawn, tell, replies=replies):
            for number in range(len(prompts)):
                length = next(replies)
                yield number, engines._reply(tokenizer, [65] * length, "length" if length == LENGTH else "stop")

        monkeypatch.setattr(engines.TransformersEngine, "answer", answer)
        assert ask([{"prompt": "Hi"}] * len(lengths), out=verifier.parent / f"{case}" / "a.jsonl") == 0
        told = [line for line in capsys.readouterr().err.splitlines() if " were cut " in line]
        assert [line[: len(said)] for line in told] == [said] * bool(said)
        assert ask([{"prompt": "Hi"}] * len(lengths), out=verifier.parent / f"{case}" / "a.jsonl") == 0
        assert [line for line in capsys.readouterr().err.splitlines() if " were cut " in line] == told, (
            "nothing was left to do"
        )


def test_spaces_are_the_verifiers_own_where_a_tokenizer_would_clean_them_up(verifier):
    """As older releases of transformers do."""
    cleans = "clean_up_tokenization_spaces"
    spoilt = {cleans: True, f"{cleans}_for_bpe_even_though_it_will_corrupt_output": True}
    edit(verifier / "tokenizer_config.json", **spoilt)
    tokenizer = open_tokenizer(str(verifier))
    ids = tokenizer("Is it , or n't ?", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "Is it, orn't?"
    assert engines._reply(tokenizer, ids, "stop").text == "Is it , or n't ?"
    asking = {"turns": ["One?", "Two?"]}
    (verifier / "p.json").write_text(json.dumps([asking]))
    (prompt,) = read_questions(verifier / "p.json", lambda: tokenizer, 512)
    assert "Is it , or n't ?" in tokenizer.decode(prompt.ask_on(ids).ids, clean_up_tokenization_spaces=False)


def test_a_token_that_ends_an_answer_is_none_of_it(ask, answered, verifier):
    """Any token is one; of a text file, whose lines are prompts, the first samples."""
    (verifier / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(512))}))
    assert ask(["one", "", "two", "three"], form="txt", samples=2) == 0
    said = [[turn["content"] for turn in line["messages"]] for line in answered()]
    assert said == [["one", ""], ["two", ""]]
    assert {line["finish_reason"] for line in answered()} == {"stop"}


def test_a_dialogue_without_room_ends_as_one_that_was_cut(ask, answered, verifier):
    edit(verifier / "config.json", max_position_embeddings=60)
    assert ask([{"turns": ["Hi", "so " * 40, "never asked"]}]) == 0
    assert [turn["role"] for turn in answered()[0]["messages"]] == ["user", "assistant", "user"]
    assert answered()[0]["finish_reason"] == "length"


THOUGHTS = "<think>\nHm.\n</think>\n\nYes."
CHANNELS = "<|python_tag|>analysis<|eom_id|>Yes."


@pytest.mark.parametrize("special", [False, True])
def test_answers_that_no_record_can_hold_end_the_first_window(ask, verifier, tmp_path, monkeypatch, capsys, special):
    """By the same command again too. One that can be held is enough; those that were cut are asked if none was not."""
    if not special:
        (verifier / "chat_template.jinja").write_text(ARCHITECTURES["qwen3"].chat.template)
    monkeypatch.setattr(module, "WINDOW", 2)
    tokenizer, replies = open_tokenizer(str(verifier)), []
    bad, found = (CHANNELS, f"special tokens in '{CHANNELS}'") if special else (THOUGHTS, "the chat template repeats")

    def answer(self, prompts, drawn, tell):
        for number in range(len(prompts)):
            text, end = replies[number % len(replies)]
            yield number, engines._reply(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"], end)

    monkeypatch.setattr(engines.TransformersEngine, "answer", answer)
    for replies[:], judged in [
        ([(bad, "stop")], 2),
        ([(bad, "stop"), ("Yes.", "length")], 1),
        ([(bad, "length")], 2),
        ([(bad, "stop"), ("Yes.", "stop")], 0),
    ]:
        assert ask() == (2 if judged else 0)
        said = f"answers: found none of {judged} that a record can hold, the first: {found}"
        assert (said in capsys.readouterr().err) == (judged > 0)
        assert (tmp_path / "answers" / "a.jsonl").read_text().count("\n") == (0 if judged else len(ROWS))


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_after_a_kill_at_any_byte_the_same_command_gives_the_same(ask, tmp_path, monkeypatch, temperature):
    """In the first line, at the end of the second, and in the last."""
    monkeypatch.setattr(module, "WINDOW", 2)
    file = tmp_path / "answers" / "a.jsonl"
    assert ask(temperature=temperature, max_concurrency=2) == 0
    whole = file.read_bytes()
    for cut in (7, whole.index(b"\n", whole.index(b"\n") + 1) + 1, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert ask(temperature=temperature, max_concurrency=2) == 0
        assert file.read_bytes() == whole


def one_is_killed(folder, argv):
    """In its window, once."""
    answer, module.WINDOW = engines.TransformersEngine.answer, 2

    def dying(*words):
        if not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(*words)

    engines.TransformersEngine.answer = dying
    return forking(main, argv)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_two_copies_answer_as_one_does_also_where_one_is_killed_in_its_window(
    ask, fork, tmp_path, monkeypatch, temperature
):
    monkeypatch.setattr(module, "WINDOW", 2)
    assert ask(temperature=temperature) == 0
    whole = (tmp_path / "answers" / "a.jsonl").read_bytes()
    two = {"temperature": temperature, "copies": 2, "out": tmp_path / "two" / "a.jsonl"}
    process = ask(run=lambda words: fork(one_is_killed, tmp_path, words), **two)
    assert "ended by signal 9; started again, its window is done again\n" in process.ended()
    assert process.returncode == 0
    assert two["out"].read_bytes() == whole


def four_cards(folder, argv):
    """And a vLLM that writes down what it is given; it goes on once there are two of it."""
    vllm = ModuleType("vllm")

    class LLM:
        def __init__(self, **options):
            told = {"visible": os.environ["CUDA_VISIBLE_DEVICES"], **options}
            (folder / f"{os.getpid()}.given").write_text(json.dumps(told))
            while len(list(folder.glob("*.given"))) < 2:
                time.sleep(0.01)

        def generate(self, prompts, params, use_tqdm):
            replies = [SimpleNamespace(token_ids=[65, 66], finish_reason="stop") for _ in prompts]
            return [SimpleNamespace(outputs=[reply]) for reply in replies]

    vllm.LLM, vllm.SamplingParams, vllm.__version__ = LLM, lambda **drawn: SimpleNamespace(**drawn), "0"
    sys.modules["vllm"], module.WINDOW = vllm, 2
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    module.find_spec, torch.accelerator.device_count = (lambda name: True), (lambda: 4)
    return forking(main, argv)


def test_each_copy_of_vllm_has_cards_of_its_own(ask, answered, fork, tmp_path):
    """Of four as many as there are of two each."""
    process = ask(run=lambda words: fork(four_cards, tmp_path, words), engine="vllm", tensor_parallel=2)
    process.ended()
    given = [json.loads(file.read_text()) for file in tmp_path.glob("*.given")]
    assert sorted(each["visible"] for each in given) == ["0,1", "2,3"]
    assert {each["tensor_parallel_size"] for each in given} == {2}
    assert [each.get("enable_chunked_prefill", True) for each in given] == [torch.accelerator.is_available()] * 2
    assert len(answered()) == len(ROWS)


CHANGED = [
    ({"temperature": 0.5}, "temperature: found 0.0, expected 0.5"),
    ({"seed": 1}, "seed: found 0, expected 1"),
    ({"max_new_tokens": 3}, "max_new_tokens: found 9"),
    ({"max_concurrency": 7}, "engine: found transformers"),
    ({"samples": 2}, "prompts: found "),
    ({"chat_template": "llama"}, "chat: found "),
]


def test_answers_made_in_another_way_are_not_gone_on_with(ask, tmp_path, capsys):
    assert ask() == 0
    before = (tmp_path / "answers" / "a.jsonl").read_bytes()
    for change, said in CHANGED:
        assert ask(**change) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "answers" / "a.jsonl").read_bytes() == before


def without_template(verifier):
    (verifier / "chat_template.jinja").unlink(missing_ok=True)
    edit(verifier / "tokenizer_config.json", chat_template=None)


def alternating(verifier):
    """Takes nothing but turns of a user and answers to them."""
    text = json.loads((verifier / "tokenizer_config.json").read_text())["chat_template"]
    odd = "(turn.role == 'user') != (loop.index0 % 2 == 0)"
    (verifier / "chat_template.jinja").write_text(text.replace("turn.role not in ('system', 'user', 'assistant')", odd))


LATER = [
    {"turns": ["Hi", "So"]},
    {"messages": [{"role": role, "content": "Hi"} for role in ("user", "system", "user")]},
]
REFUSED = [
    ({"data": "/nowhere.jsonl", "rows": None}, None, "data: found "),
    ({"rows": [""], "form": "txt"}, None, "messages: found no rows"),
    ({"rows": [{"turns": []}]}, None, "row 0: found turns: found [], expected a list of turns"),
    ({"rows": [{"messages": [{"role": "assistant", "content": "Yes"}]}]}, None, "expected a turn of a user"),
    ({"verifier": "/nowhere"}, None, "/nowhere: tokenizer: found "),
    ({"max_new_tokens": 512}, None, "--max-new-tokens: found 512, expected below 512"),
    ({"top_p": 0}, None, "--top-p: found '0'"),
    ({}, without_template, "expected a tokenizer with a chat template"),
    ({"out": "/proc/nowhere/a.jsonl"}, None, ": out: found "),
    ({"out": "{root}"}, None, ": out: found a directory"),
    ({"server": "http://127.0.0.1:9"}, None, "--server /v1/models: found "),
    ({"server": "http://a b"}, None, "--server /v1/models: found "),
    ({"server": "nothing"}, None, "--server /v1/models: found "),
    ({"engine": "vllm"}, None, "--engine: found vllm, which is not installed"),
    ({"data": "{root}", "out": "{root}/a.jsonl"}, None, "out: found inside "),
    ({"rows": LATER}, alternating, "row 1: found role "),
]


@pytest.mark.parametrize(("changes", "spoil", "said"), REFUSED)
def test_bad_input_is_refused_in_a_line(ask, verifier, tmp_path, capsys, monkeypatch, changes, spoil, said):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    if spoil:
        spoil(verifier)
    changes |= {name: str(value).format(root=tmp_path) for name, value in changes.items() if name in ("data", "out")}
    assert ask(**changes) == 2
    line = capsys.readouterr().err.rstrip("\n").split("\n")[-1]
    assert line.startswith("error: ")
    assert said in line
    assert "server" in changes or not (tmp_path / "answers").exists()


def test_a_file_of_another_command_or_of_nobody_is_left_alone(ask, hold, tmp_path, capsys):
    hold(tmp_path / "answers", ".a.jsonl.lock")
    assert ask() == 2
    assert "out: found in use by process" in capsys.readouterr().err
    other = tmp_path / "answers" / "b.jsonl"
    other.write_text("mine\n")
    for more in ({}, {"restart": None}):
        assert ask(out=other, **more) == 2
        assert "out: found b.jsonl without b.jsonl.manifest" in capsys.readouterr().err
    assert other.read_text() == "mine\n"


def test_what_is_whole_is_left_alone_and_needs_no_verifier(ask, tmp_path, monkeypatch):
    assert ask() == 0
    monkeypatch.setattr(engines, "load_verifier", None)
    whole = (tmp_path / "answers" / "a.jsonl").read_bytes()
    assert ask() == 0
    assert (tmp_path / "answers" / "a.jsonl").read_bytes() == whole


def test_the_engine_that_began_goes_on_whatever_was_installed_since(ask, tmp_path, monkeypatch, capsys):
    """Another one is refused, or begins afresh where nothing is answered."""
    assert ask(engine="auto", max_concurrency=4) == 0
    out, manifest = tmp_path / "answers" / "a.jsonl", tmp_path / "answers" / "a.jsonl.manifest"
    began = json.loads(manifest.read_text())["engine"]
    assert began.startswith("transformers ")
    out.write_text("")
    monkeypatch.setattr(module, "find_spec", lambda name: True)
    capsys.readouterr()
    assert ask(engine="auto", max_concurrency=4) == 0
    assert f"transformers began {out} and goes on; vLLM answers in another --out" in capsys.readouterr().err
    assert ask(engine="auto", max_concurrency=2) == 2
    assert f"{manifest}: engine: found {began}, expected transformers " in capsys.readouterr().err
    monkeypatch.undo()
    out.write_text("")
    assert ask(engine="transformers", max_concurrency=2) == 0
    assert json.loads(manifest.read_text())["engine"].endswith(", 2 at a time")


ALL = [(0, 0.5), (0, 1.0), (0, 1.5), (0, 2.0), (2, 2.0), (2, 2.25), (2, 2.5), (2, 2.75), (2, 3.0), (3, 3.0)]
ENDED = [(2, 2.0), (2, 2.0), (3, 3.0), (3, 3.0)]


@pytest.mark.parametrize(("stop", "expected"), [(frozenset(), ALL), (frozenset(range(512)), ENDED)])
def test_answers_are_told_of_as_they_are_given(verifier, monkeypatch, stop, expected):
    """With what there is of the others: two of three prompts at a time, answers of 4 tokens, or of the first alone."""
    monkeypatch.setattr(engines, "end_tokens", lambda model: stop)
    engine, told = engines.TransformersEngine(str(verifier), open_tokenizer(str(verifier)), 2), []
    prompts, drawn = [Prompt([9, 9], 0)] * 3, {"max_tokens": 4, "temperature": 0.0, "top_p": 1.0}
    assert len(list(engine.answer(prompts, drawn, lambda *counts: told.append(counts)))) == 3
    assert told == expected


def test_vllm_is_given_ids_and_seeds_and_its_answers_are_decoded(ask, answered, verifier, monkeypatch):
    """A stand-in for vLLM, which says the prompt's last token twice."""
    vllm, made, told = ModuleType("vllm"), [], []

    class LLM:
        def __init__(self, **options):
            made.append(options)

        def generate(self, prompts, params, use_tqdm):
            assert list(use_tqdm(prompts, desc="Adding requests")) == prompts
            with use_tqdm(total=len(prompts), desc="Processed prompts") as bar:
                for _ in prompts:
                    bar.update(1)
                    told.append(progress._open[-1].done)
            tails = [prompt["prompt_token_ids"][-1:] * 2 for prompt in prompts]
            ends = ["length" if one.seed % 2 else "stop" for one in params]
            replies = [SimpleNamespace(token_ids=ids, finish_reason=end) for ids, end in zip(tails, ends)]
            return [SimpleNamespace(outputs=[reply]) for reply in replies]

    vllm.LLM, vllm.SamplingParams, vllm.__version__ = LLM, lambda **drawn: SimpleNamespace(**drawn), "0"
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(module, "find_spec", lambda name: True)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    for name in {*VLLM_ENVIRONMENT, "HF_HUB_OFFLINE"} - {"VLLM_CPU_KVCACHE_SPACE"}:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert ask(engine="auto") == 0
    assert len(made) == 1
    assert (made[0]["model"], made[0]["dtype"]) == (str(verifier), "float32")
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "1", "the user's own"
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    words = {line["finish_reason"]: line["messages"][-1]["content"] for line in answered()}
    assert words.keys() == {"length", "stop"}
    assert words["length"] == 2 * words["stop"], "what ends an answer is none of it"
    assert told == [1, 2, 3, 4, 5, 6, 7], "each as it is given, and not all of them once vLLM is done"


def test_what_vllm_does_not_end_is_asked_for_again_and_then_refused_by_name(
    ask, answered, tmp_path, monkeypatch, capsys
):
    """A stand-in for vLLM, which aborts what it is told to."""
    vllm, ends = ModuleType("vllm"), []

    def generate(self, prompts, params, use_tqdm):
        replies = [SimpleNamespace(token_ids=[65, 66], finish_reason=ends.pop(0) if ends else "stop") for _ in prompts]
        return [SimpleNamespace(outputs=[reply]) for reply in replies]

    vllm.LLM = type("LLM", (), {"__init__": lambda self, **options: None, "generate": generate})
    vllm.SamplingParams, vllm.__version__ = lambda **drawn: SimpleNamespace(**drawn), "0"
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(module, "find_spec", lambda name: True)
    ends[:] = ["abort", "stop", "stop", "error", "stop"] + ["abort", None] * 2
    assert ask(engine="vllm") == 2
    said = (
        "answers: found 2 of 5 that ended otherwise, each of 3 times: 1 by 'abort', 1 by 'None', expected ends by stop"
    )
    assert said in capsys.readouterr().err
    assert (tmp_path / "answers" / "a.jsonl").read_text() == ""
    ends[:] = ["abort", "", "error"]
    assert ask(engine="vllm") == 0
    assert {reason for line in answered() for reason in line["finish_reasons"]} == {"stop"}
    assert len(answered()) == len(ROWS)
