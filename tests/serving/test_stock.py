"""Drafts of Speculators' own classes, trained by their own forward and saved as they save themselves: of each, vLLM
counts what the evaluator counts."""

import pytest
import torch
from speculators.losses import resolve_loss_config

from parity.fixtures.features import load_verifier
from tests.needs import VLLM
from tests.ports.evaluate.test_drafter import STOCK, stock_draft
from tests.serving.conftest import LENGTH, NUM_PROMPTS, PROMPT, TTT_STEPS, Trained, counted, drafted, evaluated

pytestmark = VLLM

STEPS, LEARNING_RATE = 80, 3e-3
EMBEDDING = {"embed_requires_grad": True}
"""A checkpoint with an embedding of its own."""


def batch_of(folder, texts, layers):
    """The texts one after the other as Speculators' forward reads them: a token beside what was seen before it."""
    verifier, _ = load_verifier(folder)
    last = []
    verifier.model.norm.register_forward_pre_hook(lambda module, inputs: last.append(inputs[0].detach()))
    parts = []
    with torch.no_grad():
        for text in texts:
            states = verifier(torch.tensor([text]), output_hidden_states=True, use_cache=False).hidden_states
            parts.append(torch.cat([states[layer] for layer in layers], dim=-1)[:, :-1])
    return {
        "hidden_states": torch.cat(parts, dim=1),
        "input_ids": torch.tensor([[token for text in texts for token in text[1:]]]),
        "document_ids": torch.tensor([[number for number, text in enumerate(texts) for _ in text[1:]]]),
        "verifier_last_hidden_states": torch.cat([state[:, 1:] for state in last], dim=1),
    }


def trained_stock(texts, folder, switches):
    """On the texts that are asked for."""
    fixture, ids = texts
    torch.manual_seed(0)
    directory, draft = stock_draft(fixture, folder / "stock", **switches)
    draft.load_verifier_weights()
    batch = batch_of(fixture / "verifier", ids[:NUM_PROMPTS], draft.config.eagle_aux_hidden_state_layer_ids)
    batch["loss_mask"] = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    weights = [value for name, value in draft.named_parameters() if "verifier_" not in name and "embed" not in name]
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        _, loss, _ = draft(**batch, ttt_steps=TTT_STEPS, loss_config=resolve_loss_config("kl_div", "eager"))
        loss.backward()
        optimizer.step()
    draft.save_pretrained(directory)
    prompts, answers = ([text[part] for text in ids] for part in (slice(PROMPT), slice(PROMPT, None)))
    return Trained("eagle3", fixture / "verifier", directory, prompts, answers)


@pytest.mark.parametrize("switches", [*STOCK, EMBEDDING], ids=lambda each: "".join(each) or "none")
def test_acceptance_is_the_evaluators(serve, texts, tmp_path, switches):
    trained = trained_stock(texts, tmp_path, switches)
    served = drafted(serve, trained, trained.draft)
    assert served["tokens"] == [answer[:LENGTH] for answer in trained.answers[:NUM_PROMPTS]]
    assert served["accepted_per_position"][-1] > 0
    assert counted(served) == evaluated(trained, trained.draft)
