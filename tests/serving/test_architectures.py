"""Drafts of other verifiers in vLLM: the verifier's own tokens, and acceptance as the evaluator counts it."""

import pytest
import torch

from parity.fixtures.architectures import ARCHITECTURES, STUDIED, plainer
from parity.fixtures.architectures.table import CHUNK
from parity.fixtures.architectures.training import PROMPT, build_answers
from tests.needs import VLLM
from tests.serving.conftest import LENGTH, NUM_PROMPTS, TTT_STEPS, counted, drafted, evaluated, train

pytestmark = VLLM

ENGINE = {"llama4": {"limit_mm_per_prompt": {"image": 0}, "block_size": CHUNK}}
"""Beside the models: no images, for which the fixture has no processor, and blocks that chunks hold whole."""

SERVED = [(name, "eagle3", layer) for name in STUDIED for layer in ARCHITECTURES[name].drafts]
SERVED += [(name, "hass", "llama") for name in STUDIED]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Of a verifier: its training fixture and the ids of its samples, made once."""
    made = {}

    def make(name):
        if name not in made:
            fixture = build_answers(plainer(name), tmp_path_factory.mktemp(name) / "fixture")
            files = sorted((fixture / "data_eagle3").iterdir())
            made[name] = fixture, [torch.load(file, weights_only=True)["input_ids"].tolist() for file in files]
        return made[name]

    return make


@pytest.fixture(scope="module")
def plain_of(serve, answers):
    """What vLLM says without a draft, asked once of each verifier."""
    said = {}

    def ask(name):
        fixture, texts = answers(name)
        if name not in said:
            prompts = [text[:PROMPT] for text in texts]
            said[name] = serve(prompts, model=str(fixture / "verifier"), **ENGINE.get(name, {}))
        return said[name]

    return ask


@pytest.mark.parametrize(("name", "kind", "layer"), SERVED)
def test_tokens_are_the_verifiers_and_acceptance_is_the_evaluators(
    serve, answers, plain_of, tmp_path, name, kind, layer
):
    trained = train(kind, answers(name), tmp_path, f"draft_{kind}_{layer}.json")
    plain = plain_of(name)
    assert plain["tokens"] == [answer[:LENGTH] for answer in trained.answers[:NUM_PROMPTS]]
    served = drafted(serve, trained, trained.draft, **ENGINE.get(name, {}))
    assert served["tokens"] == plain["tokens"]
    assert served["proposed"] == TTT_STEPS * served["drafts"]
    assert served["accepted_per_position"][-1] > 0
    assert counted(served) == evaluated(trained, trained.draft)
