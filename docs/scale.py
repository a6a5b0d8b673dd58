"""What drafts of large verifiers take, counted on their sizes: ``python -m docs.scale`` writes ``scale.json``."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ports.eagle3.config import load_draft_config
from ports.estimate import build_objective, held_bytes
from ports.generate.records import geometry_of
from ports.training.derived import derived_config
from ports.verifier.config import verifier_config
from ports.verifier.loading import verifier_parameters

SCALE = Path(__file__).with_name("scale.json")
DIALOGUES, TOKENS, WORDS, DEVICES = 100_000, 1000, 32_000, 8
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
SIZES: dict[str, dict[str, Any]] = {
    "Llama 3.1 8B": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "Llama 3.1 70B": {
        **LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "Qwen 3 235B-A22B": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 4096,
        "head_dim": 128,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "torch_dtype": "bfloat16",
    },
}
"""As their configs on the hub say."""


def count(config: dict[str, Any]) -> dict[str, int]:
    """Bytes: the verifier's weights, Eagle3's records, and what one of several devices holds of draft and optimizer."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
        draft = {**derived_config(verifier_config(folder)), "draft_vocab_size": WORDS}
        (Path(folder) / "draft.json").write_text(json.dumps(draft))
        shape = geometry_of("eagle3", folder)
        objective = build_objective(load_draft_config(f"{folder}/draft.json", folder, 3), 3)
        return {
            "verifier": shape.item_bytes * verifier_parameters(folder),
            "records": DIALOGUES * shape.bytes_of(TOKENS),
            "training": sum(held_bytes(objective, DEVICES).values()),
        }


if __name__ == "__main__":
    SCALE.write_text(json.dumps({name: count(config) for name, config in SIZES.items()}, indent=1) + "\n")
