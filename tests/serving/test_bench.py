"""Tokens per second of a served draft: the bench's counts are vLLM's, the evaluator's beside them."""

import json

from tests.commands import main_of
from tests.needs import VLLM
from tests.serving.conftest import CORE, NUM_PROMPTS

main = main_of("bench")

pytestmark = VLLM


def test_a_draft_is_timed_beside_its_verifier(serve, trained, tmp_path):
    file, prompts = tmp_path / "result.json", tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(ids) + "\n" for ids in trained.prompts[:NUM_PROMPTS]))
    flags = ["--prompts", str(prompts), "--speculative-tokens", "3", "--max-concurrency", "1", "--rounds", "1"]
    flags += ["--max-new-tokens", "32"]
    words = [str(trained.draft), *flags, "--cores", CORE, "--dtype", "float32", "--json", str(file)]
    assert main(words) == 0
    result = json.loads(file.read_text())
    plain, drafted = result["rows"]
    assert (plain["speculative_tokens"], drafted["speculative_tokens"]) == (0, 3)
    assert (plain["times_plain"], plain["drafts"], plain["draft_share"]) == (1, 0, 0)
    assert drafted["drafts"] == result["evaluator"]["drafts"]
    assert drafted["rate_per_position"] == result["evaluator"]["rate_per_position"]
    assert 0 < drafted["draft_share"] < 1
