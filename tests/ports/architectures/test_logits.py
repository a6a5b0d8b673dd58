"""What a draft is trained to foresee is what the verifier's own class says, of every architecture, tied and untied."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from parity.fixtures.architectures import ARCHITECTURES, build_architecture
from ports.evaluate.decode import Limits, decode
from ports.training.online import FeatureReader
from ports.verifier.loading import load_verifier
from ports.verifier.logits import VerifierHead

IDS = torch.tensor([[10, 200, 33, 33, 410, 7, 90, 311, 301, 5, 17, 44]])
UNTIED = {"gemma2", "granite", "cohere"}
"""Those of the tied ones that are also tried with a head of their own."""


@pytest.fixture(scope="module", params=[*ARCHITECTURES, *(f"{name}-untied" for name in sorted(UNTIED))])
def verifier(request, tmp_path_factory):
    name, _, untied = request.param.partition("-")
    each = ARCHITECTURES[name]
    if untied:
        each = dataclasses.replace(each, config={**each.config, "tie_word_embeddings": False})
    return str(build_architecture(each, tmp_path_factory.mktemp(name) / "verifier"))


@pytest.fixture(scope="module")
def model(verifier):
    """transformers' own, as nobody here loads it."""
    return AutoModelForCausalLM.from_pretrained(verifier, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def said(model):
    """Its logits and states, and the state that its final norm was given."""
    before: list[torch.Tensor] = []
    hook = model.model.norm.register_forward_hook(lambda _, given, out: before.append(given[0]))
    with torch.no_grad():
        found = model(input_ids=IDS, output_hidden_states=True)
    hook.remove()
    return found.logits[0], found.hidden_states, before[0][0]


def test_targets_of_records_and_online_are_the_models_own_logits(verifier, said):
    logits, states, _ = said
    online = FeatureReader(load_verifier(verifier, "auto", "cpu"), [3, 4, 5])([IDS[0]])[0]
    torch.testing.assert_close(online["target"], states[-1][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        online["hidden_state"], torch.cat([states[n][0] for n in (3, 4, 5)], -1), rtol=0, atol=1e-5
    )
    head, rows = VerifierHead.load(verifier), torch.arange(0, 512, 3)
    torch.testing.assert_close(head(online["target"]), logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(VerifierHead.load(verifier, rows)(online["target"]), logits[:, rows], rtol=0, atol=1e-4)


def test_prepared_data_before_the_norm_give_them_too(verifier, said):
    logits, states, before = said
    head = VerifierHead.load(verifier)
    assert (before - states[-1][0]).abs().max() > 0.1, "it does something"
    torch.testing.assert_close(head.norm(before), states[-1][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(head(head.norm(before)), logits, rtol=0, atol=1e-4)


def test_the_evaluator_says_what_they_say(verifier, model):
    ids, wanted = IDS.clone(), []
    for _ in range(6):
        with torch.no_grad():
            wanted.append(int(model(input_ids=ids).logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([wanted[-1:]])], dim=1)
    judge = load_verifier(verifier, "float32", "cpu", head=True)
    assert decode(judge, [IDS[0].tolist()], Limits(6))[0].tokens == wanted
