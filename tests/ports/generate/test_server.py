"""A server is not believed: what is no answer ends the command in a line, what is refused for now is asked again."""

import asyncio
import json
import os
import re
import signal
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ports.errors import InputError
from ports.generate import server as module
from ports.generate.replies import Prompt
from ports.verifier.tokenizer import open_tokenizer
from tests.commands import main_of
from tests.ports.conftest import words_of

main = main_of("answers")

MODEL, LENGTH, PROMPTS = "tiny", 160, 9
COMPLETIONS, MODELS = "/v1/completions", "/v1/models"


def choice(**changes):
    return {"choices": [{"text": "Yes.", "finish_reason": "stop", **changes}]}


def send(status=200, content=b"", **headers):
    """A reply of that content, JSON if it is not bytes."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    def reply(handler):
        handler.send_response(status)
        for name, value in {"content-length": len(body), **headers}.items():
            handler.send_header(name.replace("_", "-"), str(value))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def cut_off(handler):
    """A ninth of what was announced."""
    send(200, json.dumps(choice()).encode()[:9], content_length=500)(handler)
    handler.close_connection = True


def reset(handler):
    """A connection that breaks before a byte of the reply."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def flood(handler):
    """A body without an end."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.over.is_set():
        handler.wfile.write(b" " * (1 << 16))


def hang(handler):
    handler.server.over.wait(60)


def trickle(handler):
    """A byte now and then."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


PASSING = {
    "status 503": send(503),
    "status 429": send(429, retry_after=0),
    "status 429 until a date": send(429, retry_after="Wed, 21 Oct 2026 07:28:00 GMT"),
    "cut off": cut_off,
    "a connection that breaks": reset,
}
"""What a busy server does for now."""

ANSWERS = {
    "an empty body": (send(), "Expecting value"),
    "HTML": (send(200, b"<html>Sign in</html>"), "Expecting value"),
    "half of the JSON": (send(200, json.dumps(choice()).encode()[:20]), "Unterminated|Expecting"),
    "bytes that are no UTF-8": (send(200, b'{"choices": [{"text": "\xff"}]}'), "utf-8"),
    "JSON nested for ever": (send(200, b"[" * 200_000), "recursion|nest"),
    "a list": (send(200, [1]), r"found \[1\], expected choices with text"),
    "empty choices": (send(200, {"choices": []}), "expected choices with text, one of them"),
    "two choices": (send(200, {"choices": choice()["choices"] * 2}), "one of them"),
    "text null": (send(200, choice(text=None)), "found text None"),
    "text that is a list": (send(200, choice(text=["a"])), r"found text \['a'\]"),
    "half of a surrogate pair": (send(200, choice(text="\ud800")), "found text"),
    "3,000 words": (send(200, choice(text="yes " * 3000)), "tokens, expected at most the 160 asked for"),
    "usage of 3,000": (send(200, {**choice(), "usage": {"completion_tokens": 3000}}), "found 3,000 tokens"),
    "moved to itself": (send(307, location=COMPLETIONS), "found status 307"),
    "status 400": (send(400, {"error": "\x1b[31mred"}), "found status 400"),
    "status 204": (send(204), "found status 204"),
    "a flood": (flood, "found more than 8,388,608 bytes"),
    "never anything but 503": (send(503), r"found status 503 \(8 times\)"),
    "only broken connections": (reset, r"\(8 times\)"),
}
"""Each with what is said of it."""

LISTS = {
    "another model": (send(200, {"data": [{"id": "other"}]}), "found 'other', expected tiny, or the server's name"),
    "no model": (send(200, {"data": []}), "found no model"),
    "HTML for a list": (send(200, b"<html>"), "Expecting value"),
    "escapes in a name": (send(200, {"data": [{"id": "\x1b[31mred\x07"}]}), r"found '\\x1b\[31mred\\x07'"),
}


class Hostile(BaseHTTPRequestHandler):
    """Does to every n-th request of a path what the test says, and serves the model ``tiny`` otherwise."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.serve(MODELS, {"data": [{"id": MODEL, "root": "/models/tiny"}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        self.prompt = asked["prompt"]
        self.serve(COMPLETIONS, choice(text=f"{len(asked['prompt'])} words"))

    def serve(self, path, content):
        if self.headers["Authorization"] != self.server.wanted:
            return send(401, {"error": f"wrong: {self.headers['Authorization']}"})(self)
        with self.server.counting:
            self.server.times[path] = self.server.times.get(path, 0) + 1
            times = self.server.times[path]
        does, every = self.server.does.get(path, (None, 1))
        try:
            (does if does and times % every == 0 else send(200, content))(self)
        except OSError:
            self.close_connection = True

    def log_message(self, *words):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSES", (0.001, 0.01))
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    serving.daemon_threads = True
    serving.handle_error = lambda *words: None
    serving.asked, serving.times, serving.does, serving.wanted = [], {}, {}, None
    serving.counting, serving.over = threading.Lock(), threading.Event()
    threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
    yield serving
    serving.over.set()
    serving.shutdown()
    serving.server_close()


@pytest.fixture
def words(verifier, tmp_path, server):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": "Hi " * number}) + "\n" for number in range(1, PROMPTS + 1)))
    url, out = f"http://127.0.0.1:{server.server_port}/v1/", tmp_path / "answers" / "a.jsonl"
    chosen = {"verifier": verifier, "data": data, "out": out, "server": url, "max_new_tokens": LENGTH}
    return lambda **changes: words_of({**chosen, "served_model": MODEL, "no-progress": None, **changes})


@pytest.fixture
def answered(tmp_path):
    file = tmp_path / "answers" / "a.jsonl"
    return lambda: [json.loads(line)["messages"][-1]["content"] for line in file.read_text().splitlines()]


def test_a_server_is_asked_for_completions_of_ids(server, words, answered):
    assert main(words(temperature=0.5, top_p=0.9)) == 0
    assert [int(text.split()[0]) for text in answered()] == sorted(len(asked["prompt"]) for asked in server.asked)
    assert len({asked["seed"] for asked in server.asked}) == PROMPTS
    how = {(asked["model"], asked["temperature"], asked["top_p"], asked["max_tokens"]) for asked in server.asked}
    assert how == {(MODEL, 0.5, 0.9, LENGTH)}


@pytest.mark.parametrize("does", PASSING.values(), ids=PASSING)
def test_a_busy_server_is_asked_again(server, words, answered, does):
    server.does = {COMPLETIONS: (does, 5), MODELS: (does, 2)}
    server.times[MODELS] = 1  # the first request of it is refused too
    assert main(words()) == 0
    assert len(answered()) == PROMPTS
    assert server.times[COMPLETIONS] > PROMPTS


@pytest.fixture(scope="module")
def tokenizer(verifier_once):
    return open_tokenizer(str(verifier_once))


@pytest.mark.parametrize(("does", "said"), ANSWERS.values(), ids=ANSWERS)
def test_what_is_no_answer_is_refused(server, tokenizer, does, said):
    server.does[COMPLETIONS] = does, 1
    engine = module.ServerEngine(MODEL, tokenizer, module.Address(f"http://127.0.0.1:{server.server_port}"))
    drawn = {"max_tokens": LENGTH, "temperature": 0.0, "top_p": 1.0}
    with pytest.raises(InputError, match=said) as refused:
        list(engine.answer([Prompt([1, 2], 0)] * 2, drawn, lambda *counts: None))
    assert refused.value.field == "--server /v1/completions"


def test_what_is_no_answer_ends_the_command_and_loses_no_other(server, words, answered, capfd):
    server.does[COMPLETIONS] = send(400, {"error": "\x1b[31mred"}), 1
    assert refusal(words(), capfd, "found status 400", "completions")
    assert answered() == []
    server.does.clear()
    assert main(words()) == 0
    assert len(answered()) == PROMPTS


@pytest.mark.parametrize(("does", "said"), LISTS.values(), ids=LISTS)
def test_a_server_without_the_verifier_is_asked_for_nothing(server, words, capfd, does, said):
    server.does[MODELS] = does, 1
    assert refusal(words(), capfd, said, "models")
    assert server.asked == []


def refusal(words, capfd, said, path):
    """One line, in print, that says so."""
    assert main(words) == 2
    line = capfd.readouterr().err
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert f"--server /v1/{path}: found " in line
    return re.search(said, line)


def test_the_name_of_the_file_that_is_served_will_do(server, words):
    assert main(words(served_model="/models/tiny")) == 0
    assert {asked["model"] for asked in server.asked} == {MODEL}


def test_a_server_that_is_gone_is_asked_only_where_something_is_missing(server, words, answered, tmp_path):
    assert main(words()) == 0
    server.shutdown()
    server.server_close()
    assert main(words()) == 0
    (tmp_path / "answers" / "a.jsonl").write_text("")
    assert main(words()) == 2
    assert answered() == []


def test_dialogues_that_are_whole_are_not_asked_for_again(server, words, answered):
    """Of nine the last is refused for good."""
    server.does[COMPLETIONS] = send(), PROMPTS
    assert main(words()) == 2
    assert len(server.asked) == PROMPTS
    server.does.clear()
    assert main(words()) == 0
    assert len(server.asked) < 2 * PROMPTS
    assert sorted(answered(), key=lambda text: int(text.split()[0])) == answered()
    assert len(answered()) == PROMPTS


@pytest.fixture
def broken_off(server, words, capfd):
    """A first window of which the last answer is refused for good; the others are kept. Then all are given again."""
    server.does[COMPLETIONS] = send(), PROMPTS
    assert main(words()) == 2
    server.does.clear()
    server.asked.clear()
    capfd.readouterr()


OTHERS = [
    ({"temperature": 0.5}, "temperature: found 0.0, expected 0.5"),
    ({"top_p": 0.5, "temperature": 0}, "top_p: found 1.0, expected 0.5"),
    ({"seed": 1}, "seed: found 0, expected 1"),
    ({"max_new_tokens": 9}, "max_new_tokens: found 160, expected 9"),
    ({"served_model": "/models/tiny"}, "served_model: found tiny, expected /models/tiny"),
    ({"data": "{root}/others.jsonl"}, "prompts: found "),
]


@pytest.mark.parametrize(("changes", "said"), OTHERS)
def test_what_another_command_kept_is_refused_or_dropped(
    broken_off, server, words, answered, tmp_path, capfd, changes, said
):
    lengths = range(2, PROMPTS + 2)
    (tmp_path / "others.jsonl").write_text("".join(f'{{"prompt": "{"So " * length}"}}\n' for length in lengths))
    other = words(**{name: str(value).format(root=tmp_path) for name, value in changes.items()})
    assert main(other) == 2
    line = capfd.readouterr().err
    assert said in line
    assert line.endswith("another one takes another --out or --restart\n")
    assert (line.count("\n"), server.asked) == (1, [])
    assert main([*other, "--restart"]) == 0
    assert [int(text.split()[0]) for text in answered()] == sorted(len(asked["prompt"]) for asked in server.asked)
    assert len(server.asked) == PROMPTS
    assert main(other) == 0
    assert len(server.asked) == PROMPTS


def of_another(kept):
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "made": "0123456789abcdef"}))


SPOILT = {
    "of an older release": lambda kept: kept.write_text('{"row": 0, "rounds": [], "said": [], "cut": false}\n'),
    "damaged": lambda kept: kept.write_bytes(kept.read_bytes()[:-9]),
    "of another command": of_another,
    "without a manifest": lambda kept: kept.with_name("a.jsonl.manifest").unlink(),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_what_was_kept_must_say_how_it_was_made(broken_off, server, words, answered, tmp_path, capfd, spoil):
    spoil(tmp_path / "answers" / ".a.jsonl.kept")
    assert main(words()) == 2
    assert re.fullmatch("error: .*: out: found .*\n", capfd.readouterr().err)
    assert (server.asked, answered()) == ([], [])
    assert main([*words(), "--restart"]) == 0
    assert len(server.asked) == len(answered()) == PROMPTS


def test_a_dialogue_whose_last_answer_is_missing_is_not_whole_since_an_earlier_one_was_cut(server, words, tmp_path):
    (tmp_path / "turns.jsonl").write_text(json.dumps({"turns": ["Hi", "So"]}) + "\n")
    replies = [send(200, choice(finish_reason="length")), send(400), send(200, choice()), send(200, choice())]
    server.does[COMPLETIONS] = (lambda handler: replies.pop(0)(handler)), 1
    assert main(words(data=tmp_path / "turns.jsonl")) == 2
    assert main(words(data=tmp_path / "turns.jsonl")) == 0
    line = json.loads((tmp_path / "answers" / "a.jsonl").read_text())
    assert [turn["role"] for turn in line["messages"]] == ["user", "assistant"] * 2
    assert line["finish_reasons"] == ["stop", "stop"]


@pytest.mark.parametrize("end", ["abort", "error", "", None])
def test_an_answer_that_ends_by_anything_else_is_asked_for_again(server, words, answered, tmp_path, end):
    server.does[COMPLETIONS] = send(200, choice(text=None, finish_reason=end)), 5
    assert main(words()) == 0
    assert len(server.asked) == PROMPTS + 2
    assert [int(text.split()[0]) for text in answered()] == sorted({len(asked["prompt"]) for asked in server.asked})


def test_what_ends_so_every_time_is_refused_and_counted_by_name(server, words, answered, capfd):
    ends = {}

    def does(handler):
        end = ends.setdefault(len(handler.prompt), ["abort", "stop", ""][len(ends) % 3])
        send(200, choice(text=f"{len(handler.prompt)} words", finish_reason=end))(handler)

    server.does[COMPLETIONS] = does, 1
    assert main(words()) == 2
    line = capfd.readouterr().err
    assert "answers: found 6 of 9 that ended otherwise, each of 3 times: 3 by '" in line
    assert {" 3 by 'abort'", " 3 by ''"} == {*re.findall(r" \d+ by '\w*'", line)}
    assert len(server.asked) == PROMPTS + 2 * 6
    server.does.clear()
    server.asked.clear()
    assert main(words()) == 0
    lengths = [length for length, end in ends.items() if end != "stop"]
    assert sorted(len(asked["prompt"]) for asked in server.asked) == sorted(lengths)
    assert len(answered()) == PROMPTS


KEY = "sk-4711-secret"


@pytest.mark.parametrize("place", ["--api-key", "OPENAI_API_KEY", "SPECULATOR_API_KEY"])
def test_a_server_that_wants_a_key_gets_it_and_nobody_else(
    server, words, answered, tmp_path, monkeypatch, capfd, place
):
    server.wanted = f"Bearer {KEY}"
    assert refusal(words(), capfd, "found status 401, expected a key that the server takes, as --api-key", "models")
    assert main([*words(), "--api-key", "another"]) == 2
    if place == "--api-key":
        monkeypatch.setenv("OPENAI_API_KEY", "another")
    else:
        monkeypatch.setenv(place, KEY)
    assert main([*words(), *([place, KEY] if place == "--api-key" else [])]) == 0
    assert len(answered()) == PROMPTS
    said = capfd.readouterr()
    told = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path.parent.name == "answers")
    assert KEY not in told + said.out + said.err


@pytest.mark.parametrize("content", [{"error": f"no such key: {KEY}"}, {"data": [{"id": "x" * 190 + KEY}]}])
def test_a_key_that_the_server_repeats_is_in_no_error(server, words, capfd, content):
    server.wanted = f"Bearer {KEY}"
    server.does[MODELS] = send(200, content), 1
    assert main([*words(), "--api-key", KEY]) == 2
    line = capfd.readouterr().err
    assert ("(the key)" in line, "sk-4" in line) == (True, False)


@pytest.mark.parametrize("key", ["sk 4711", "sk-4711\n", "sk-\u00e94711"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_told(server, words, monkeypatch, capfd, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert main(words()) == 2
    line = capfd.readouterr().err
    assert "--api-key or OPENAI_API_KEY: found characters that no header can hold" in line
    assert (line.count("\n"), "4711" in line, server.times) == (1, False, {})


@pytest.mark.parametrize("does", [hang, trickle])
def test_the_first_ctrl_c_ends_it(server, words, fork, does):
    server.does[COMPLETIONS] = does, 1
    process = fork(main, words())
    while COMPLETIONS not in server.times:
        assert process.returncode is None, process.said
        server.over.wait(0.02)
    os.kill(process.pid, signal.SIGINT)
    said = process.ended(18)  # it took 20 s and more
    assert process.returncode == 130, said
    assert said.rstrip().endswith("interrupted")
    assert "Traceback" not in said


def test_a_ctrl_c_that_takes_a_task_s_waking_with_it_ends_it_too(server, tokenizer, monkeypatch):
    """It comes in the loop of asyncio, which has taken the waking from its queue and not run it."""
    server.does[COMPLETIONS] = trickle, 1
    engine = module.ServerEngine(MODEL, tokenizer, module.Address(f"http://127.0.0.1:{server.server_port}"))
    real, ended = asyncio.Handle._run, []

    def run(handle):
        if not ended and COMPLETIONS in server.times and "wakeup" in repr(handle).lower():
            ended.append("interrupted")
            raise KeyboardInterrupt
        return real(handle)

    def answer():
        with pytest.raises(KeyboardInterrupt):
            list(engine.answer([Prompt([1, 2], 0)], {"max_tokens": LENGTH}, lambda *counts: None))
        ended.append("left")

    monkeypatch.setattr(asyncio.Handle, "_run", run)
    asking = threading.Thread(target=answer, daemon=True)
    asking.start()
    asking.join(10)
    assert ended == ["interrupted", "left"]
