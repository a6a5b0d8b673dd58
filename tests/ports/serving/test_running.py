"""A running server by its own counters: a small one that is played, its faults, and what is made of both."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from tests.commands import main_of

main = main_of("bench")


STEPS = (1, 3, 1, 2)
"""Tokens of each event of an answer: the first without a proposal, each later one what was accepted and one."""


class Handler(BaseHTTPRequestHandler):
    """vLLM's paths; counters are split over two engines, as under data parallelism."""

    def log_message(self, *_):
        pass

    def parse_request(self):
        """Refuse who has not the key."""
        known = super().parse_request() and self.headers["Authorization"] == self.server.played.wanted
        if not known:
            self.send_error(401)
        return known

    def do_GET(self):
        played = self.server.played
        if self.path == "/v1/models":
            return self._say(json.dumps({"data": [{"id": "tiny", "root": played.root}]}))
        lines = [f'vllm:generation_tokens_total{{engine="0"}} {played.generated}.0'] if played.counts else []
        per_pos = "vllm:spec_decode_num_accepted_tokens_per_pos"
        for engine, share in enumerate((0.25, 0.75) if played.drafts is not None else ()):
            labels = f'engine="{engine}",model_name="tiny"'
            lines.append(f"vllm:spec_decode_num_drafts_total{{{labels}}} {share * played.drafts}")
            lines.append(f"vllm:spec_decode_num_accepted_tokens_total{{{labels}}} {share * played.accepted}")
            for place, count in enumerate(played.places):
                lines.append(f'{per_pos}_total{{{labels},position="{place}"}} {share * count}')
                lines.append(f'{per_pos}_created{{{labels},position="{place}"}} 1.7e9')
        return self._say("\n".join(["# HELP vllm:generation_tokens_total Number", *lines]))

    def do_POST(self):
        played = self.server.played
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with played.lock:
            played.flying += 1
            played.most = max(played.most, played.flying)
        events, made = [], 0
        for size in STEPS:
            size = min(size, asked["max_tokens"] - made)
            made += size
            choice = {"token_ids": [7] * size} if played.ids else {"text": "a"}
            events += [json.dumps({"choices": [choice]})] if size else []
        played.gate.wait(0.02)
        with played.lock:
            played.flying -= 1
            played.generated += made + played.others
            if played.drafts is not None:
                played.drafts += 4
                played.accepted += 4 + played.lost
                played.places = [before + more for before, more in zip(played.places, (4, 0))]
        self._say("".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]))

    def _say(self, text):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def serve(fixture, monkeypatch):
    monkeypatch.setattr("ports.serving.running.SETTLED", 0.2)
    started = []

    def start(drafts=0, **changes):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        values = {"root": str(fixture / "verifier"), "generated": 5, "accepted": 8, "places": [8, 0], "counts": True}
        values |= {"ids": True, "others": 0, "lost": 0, "flying": 0, "most": 0, "lock": threading.Lock()}
        values["wanted"] = None
        server.played = SimpleNamespace(drafts=drafts, gate=threading.Event(), **{**values, **changes})
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_port}", server.played

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture
def bench(run_app, tmp_path):
    prompts, file = tmp_path / "prompts.jsonl", tmp_path / "result.json"
    prompts.write_text("".join(f"{[1] * length}\n" for length in range(2, 8)))

    def run(*words):
        flags = (
            "--prompts",
            prompts,
            "--max-new-tokens",
            7,
            "--json",
            file,
            "--max-concurrency",
            1,
            "--max-concurrency",
            4,
        )
        return run_app(main, *flags, *words), json.loads(file.read_text())["rows"] if file.exists() else []

    return run


def test_counters_and_times_with_the_draft_and_without(serve, bench, capsys):
    """Only what was counted meanwhile; plain decoding has no length but 1."""
    (drafted, played), (plain, _) = serve(), serve(drafts=None)
    code, rows = bench("--server", drafted, "--server", f"{plain}/v1/")
    assert (code, played.most) == (0, 4)
    assert [(row["server"], row["batch_size"], row["drafts"]) for row in rows] == [
        (drafted, 1, 24),
        (plain, 1, 0),
        (drafted, 4, 24),
        (plain, 4, 0),
    ]
    for row in rows[::2]:
        told = row["intervals"]
        assert (row["tokens"], row["accepted_per_position"]) == (42, [24, 0])
        assert told["acceptance_length"]["value"] == 2.0
        assert [each["value"] for each in told["rate_per_position"]] == [1.0, 0.0]
        assert told["tokens_per_second"]["value"] == pytest.approx(42 / row["seconds"])
        assert told["times_plain"]["low"] <= told["times_plain"]["value"] <= told["times_plain"]["high"]
    assert rows[1]["intervals"]["acceptance_length"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert "flight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"others": 1}, "--server /metrics: found 32 tokens generated, expected the 28 asked for, by nobody else"),
        ({"lost": 2}, "accepted tokens: found 36, expected 24, those of all positions"),
        ({"counts": False}, "--server /metrics: found no counters of vLLM"),
        ({"ids": False}, "--server /v1/completions: found no entry"),
        ({"root": "nowhere/at-all"}, "nowhere/at-all"),
    ],
)
def test_a_server_that_is_not_believed(serve, bench, capfd, changes, said):
    code, rows = bench("--server", serve(**changes)[0])
    assert (code, rows) == (2, [])
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("place", ["--api-key", "OPENAI_API_KEY", "SPECULATOR_API_KEY"])
def test_both_servers_get_the_key_and_nobody_else(serve, bench, tmp_path, monkeypatch, capfd, place):
    servers = [word for _ in range(2) for word in ("--server", serve(wanted="Bearer sk-4711")[0])]
    assert bench(*servers)[0] == 2
    assert "/v1/models: found status 401, expected a key that the server takes, as --api-key" in capfd.readouterr().err
    if place != "--api-key":
        monkeypatch.setenv(place, "sk-4711")
    code, rows = bench(*servers, *((place, "sk-4711") if place == "--api-key" else ()))
    said = capfd.readouterr()
    assert (code, len(rows)) == (0, 4)
    assert "sk-4711" not in said.out + said.err + (tmp_path / "result.json").read_text()


def test_no_server_and_no_draft(bench, capfd):
    assert bench("--server", "http://127.0.0.1:9")[0] == 2
    assert "--server /v1/models: found" in capfd.readouterr().err
    assert bench()[0] == 2
    assert "command line: DRAFT: found none" in capfd.readouterr().err
