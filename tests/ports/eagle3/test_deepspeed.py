"""ZeRO-2 in bfloat16, as the prototype is launched, on a CPU: one process of its own that reports what it saw."""

import importlib.util
import json

import pytest
import torch

from parity.prototypes.original.child import deepspeed_environment
from ports.eagle3 import train as eagle3
from ports.flags import parse
from ports.training.observer import Observer
from ports.training.settings import Eagle3Settings

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: pip install deepspeed"
)


class Watch(Observer):
    def __init__(self):
        self.seen = {"losses": []}

    def started(self, objective, optimizer):
        self.embedding = objective.draft.embed_tokens.weight.detach().clone()
        self.seen["rotary"] = str(objective.draft.rotary_emb.inv_freq.dtype)
        self.seen["weights"] = str(objective.draft.fc.weight.dtype)

    def outcome(self, micro_batch, outcome):
        self.seen["target"] = str(outcome.target.logits.dtype)
        self.seen["logits"] = str(outcome.steps[0].logits.dtype)

    def stepped(self, record, objective):
        self.seen["losses"].append(record.loss)
        self.seen["grad_norm"] = record.grad_norm

    def finished(self, objective):
        draft = objective.draft
        self.seen["head"] = str(objective.verifier(torch.zeros(1)).head.dtype)
        self.seen["embedding_kept"] = torch.equal(draft.embed_tokens.weight, self.embedding)
        self.seen["finite"] = all(bool(value.isfinite().all()) for value in draft.parameters())


def train(words, file):
    settings, watch = parse(Eagle3Settings, words), Watch()
    draft = eagle3.build(settings)
    start = {name: value.detach().bfloat16() for name, value in draft.named_parameters()}
    eagle3.finish(eagle3.start(settings, draft, eagle3.build_dataset(settings, draft.config), observer=watch))
    watch.seen["moved"] = [name for name, value in draft.named_parameters() if not torch.equal(value, start[name])]
    file.write_text(json.dumps(watch.seen))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_zero_2_in_bfloat16(fork, flags, tmp_path, accumulation):
    words = flags(epoch=5, lr=1e-2, gradient_accumulation_steps=accumulation, **{"no-noise": None, "no-shuffle": None})
    process = fork(train, words, tmp_path / "seen.json", CUDA_VISIBLE_DEVICES="", **deepspeed_environment())
    said = process.ended()
    assert process.returncode == 0, said[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert (seen["weights"], seen["logits"]) == ("torch.bfloat16", "torch.bfloat16")
    assert (seen["target"], seen["head"], seen["rotary"]) == ("torch.float32",) * 3
    assert seen["finite"]
    assert seen["embedding_kept"]
    assert "embed_tokens.weight" not in seen["moved"]
    assert {"lm_head.weight", "fc.weight", "layers.0.self_attn.q_proj.weight"} <= set(seen["moved"])
    assert sum(seen["losses"][-3:]) < sum(seen["losses"][:3])
    assert seen["grad_norm"] > 0
