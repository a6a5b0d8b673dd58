"""Windows of verifiers that name no types of layers; of those that do: ``tests/ports/architectures``."""

from __future__ import annotations

import json

import pytest

from ports.evaluate.decode import Limits, decode, decode_speculatively
from ports.evaluate.verifier import longest_prompt, open_verifier
from tests.ports.evaluate.plain import continue_greedily
from tests.ports.evaluate.test_decode import Scripted


@pytest.fixture
def windowed(pair, fixture, cpu):
    """The verifier's weights in a Mistral, whose config gives a window to all layers without naming their types."""
    config = json.loads((fixture / "verifier" / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 4}
    (fixture / "verifier" / "config.json").write_text(json.dumps(config))
    return open_verifier(str(fixture / "verifier"), "float32", cpu)


def test_one_window_for_all_layers_changes_no_token(windowed, fixture, pair, prompts):
    """Against passes without a cache, for which transformers makes the masks; prompts exceed the window."""
    wanted = [continue_greedily(windowed, prompt, 40) for prompt in prompts]
    assert wanted != [continue_greedily(pair.judge, prompt, 40) for prompt in prompts]
    drafter = Scripted(pair.drafter, prompts, [prompt + more for prompt, more in zip(prompts, wanted)])
    for found in (
        decode(windowed, prompts, Limits(20)),
        decode_speculatively(windowed, drafter, prompts, Limits(20), 3),
    ):
        assert [answer.tokens for answer in found] == [tokens[:20] for tokens in wanted]
    assert longest_prompt(str(fixture / "verifier"), 10, 3) == 512 - 10 - 3
