"""ZeRO-2 in bfloat16, as the prototype is launched, on a CPU: one process of its own that reports what it saw."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import free_port

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: pip install deepspeed"
)

DRIVER = """
import json
import sys

import torch

from ports.eagle3 import train as eagle3
from ports.training.settings import Eagle3Settings, parse
from ports.training.observer import Observer

seen = {"losses": []}


class Watch(Observer):
    def started(self, objective, optimizer):
        self.embedding = objective.draft.embed_tokens.weight.detach().clone()
        seen["rotary"] = str(objective.draft.rotary_emb.inv_freq.dtype)
        seen["weights"] = str(objective.draft.fc.weight.dtype)

    def outcome(self, micro_batch, outcome):
        seen["target"] = str(outcome.target.logits.dtype)
        seen["logits"] = str(outcome.steps[0].logits.dtype)

    def stepped(self, record, objective):
        seen["losses"].append(record.loss)
        seen["grad_norm"] = record.grad_norm

    def finished(self, objective):
        draft = objective.draft
        seen["head"] = str(objective.verifier(torch.zeros(1)).head.dtype)
        seen["embedding_kept"] = torch.equal(draft.embed_tokens.weight, self.embedding)
        seen["finite"] = all(bool(value.isfinite().all()) for value in draft.parameters())


settings = parse(Eagle3Settings, sys.argv[2:])
draft = eagle3.build(settings)
start = {name: value.detach().clone() for name, value in draft.named_parameters()}
eagle3.finish(eagle3.start(settings, draft, eagle3.build_dataset(settings, draft.config), observer=Watch()))
kept = {name: value.bfloat16() for name, value in start.items()}
seen["moved"] = sorted(name for name, value in draft.named_parameters() if not torch.equal(value, kept[name]))
open(sys.argv[1], "w").write(json.dumps(seen))
"""


@pytest.fixture
def zero2():
    """What ``accelerate launch --use_deepspeed --mixed_precision=bf16`` sets for one process, gloo on a CPU."""
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
        "ACCELERATE_GRADIENT_CLIPPING": "1.0",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "DS_ACCELERATOR": "cpu",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


@pytest.mark.parametrize("accumulation", [1, 2])
def test_zero_2_in_bfloat16(flags, zero2, tmp_path, accumulation):
    (tmp_path / "driver.py").write_text(DRIVER)
    words = flags(epoch=5, lr=1e-2, gradient_accumulation_steps=accumulation, **{"no-noise": None, "no-shuffle": None})
    command = [sys.executable, "driver.py", str(tmp_path / "seen.json"), *words]
    result = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **zero2}, capture_output=True, text=True, check=False, timeout=240
    )
    assert result.returncode == 0, result.stderr[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert (seen["weights"], seen["logits"]) == ("torch.bfloat16", "torch.bfloat16")
    assert (seen["target"], seen["head"], seen["rotary"]) == ("torch.float32",) * 3
    assert seen["finite"]
    assert seen["embedding_kept"]
    assert "embed_tokens.weight" not in seen["moved"]
    assert {"lm_head.weight", "fc.weight", "layers.0.self_attn.q_proj.weight"} <= set(seen["moved"])
    assert sum(seen["losses"][-3:]) < sum(seen["losses"][:3])
    assert seen["grad_norm"] > 0
