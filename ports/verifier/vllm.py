"""vLLM in this process, with a verifier whose weights were checked; and that verifier's hidden states, by vLLM's own
extraction.

Shapes: T tokens of a dialogue, h hidden size, F width of the features (3h for Eagle3, h for HASS). Layers are entries
of ``hidden_states``, 0 is the embedding.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ports.errors import InputError, reason
from ports.verifier.config import verifier_config
from ports.verifier.loading import check_verifier
from ports.verifier.logits import applied, final_norm
from ports.verifier.trust import trusts_remote_code

VLLM_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # ends with this process, and draws by its seeds
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GB
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Where the user has set nothing else."""

CONNECTOR = {
    "kv_connector": "KeptStates",
    "kv_connector_module_path": "ports.verifier.connector",
    "kv_role": "kv_producer",
}

BLOCK = 128
"""Slots of a block of vLLM's cache at most, unless it is told otherwise."""

SEQUENCES, TOKENS = 64, 1024
"""Of a forward: at most, and at least as a limit."""

FLUSHES = 3
"""Steps of the engine at most until states are handed on; 0.32 takes one."""


def set_environment(model: str) -> None:
    """Before vLLM is imported."""
    for name, value in VLLM_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if Path(model).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def open_vllm(model: str, **options: Any) -> Any:
    """``vllm.LLM`` of the verifier, a directory or hub id.

    Raises:
        InputError: weights as :func:`ports.verifier.loading.check_verifier` refuses them; or vLLM does not start.
    """
    set_environment(model)
    try:
        from vllm import LLM

        check_verifier(model)  # vLLM fills what is missing with whatever was in memory
        return LLM(
            model=model,
            trust_remote_code=trusts_remote_code(),
            enable_prefix_caching=False,  # what was asked before must not matter
            enforce_eager=not torch.cuda.is_available(),
            disable_log_stats=True,
            use_tqdm_on_load=False,
            language_model_only=True,
            **options,
        )
    except InputError:
        raise
    except Exception as error:  # vLLM's own, or an installation that does not fit this machine
        raise unusable(model, error) from error


def unusable(model: str, error: Exception) -> InputError:
    """What vLLM said, in a line."""
    expected = "a verifier and a machine for vLLM, or --engine transformers"
    return InputError(model, "vllm", reason(error), expected)


@dataclass
class VllmReader:
    """What :class:`ports.training.online.FeatureReader` gives, on the CPU.

    Args:
        model: the verifier, a directory or hub id.
        layers: entries of ``hidden_states``, in any order; none for HASS.
        dtype: of torch's, by name; vLLM's own default runs float32 in halves.
        longest: tokens of a dialogue at most, no more than the verifier has positions.
        batch_tokens: of one forward, about.
        devices: that the verifier is spread over.
    """

    model: str
    layers: Sequence[int] | None
    dtype: str
    longest: int
    batch_tokens: int
    devices: int = 1

    @property
    def _entries(self) -> list[int]:
        """As vLLM puts them: in ascending order. The last layer's comes before the final norm."""
        return sorted({*(self.layers or []), verifier_config(self.model).num_hidden_layers})

    def __post_init__(self) -> None:
        if self.longest == getattr(verifier_config(self.model), "max_position_embeddings", None):
            os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")  # the token after the last is never read
        chunk = getattr(verifier_config(self.model), "attention_chunk_size", None) or BLOCK
        blocks = {} if chunk % BLOCK == 0 else {"block_size": math.gcd(chunk, BLOCK)}  # a chunk holds whole ones
        self._norm = final_norm(self.model).to(getattr(torch, self.dtype))
        self._engine = open_vllm(
            self.model,
            dtype=self.dtype,
            max_model_len=self.longest + 1,
            max_num_seqs=SEQUENCES,
            max_num_batched_tokens=max(self.batch_tokens, TOKENS) + 2 * SEQUENCES,
            async_scheduling=False,
            tensor_parallel_size=self.devices,
            kv_transfer_config=dict(CONNECTOR),
            speculative_config={
                "method": "extract_hidden_states",
                "num_speculative_tokens": 1,
                "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": self._entries}},
            },
            **blocks,
        )

    def __call__(self, dialogues: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """``hidden_state`` [T, F] and, with ``layers``, ``target`` [T, h] of each; ``dialogues`` are ids [T] int64.

        Raises:
            InputError: vLLM ends, or does not give every token's states.
        """
        try:
            states = self._states([ids.tolist() for ids in dialogues])
        except Exception as error:  # vLLM's own
            raise unusable(self.model, error) from error
        return [self._features(each, len(ids)) for each, ids in zip(states, dialogues, strict=True)]

    def _states(self, dialogues: Sequence[list[int]]) -> list[Tensor]:
        """[T, entries, h] of each."""
        engine = self._engine.llm_engine
        from vllm import SamplingParams

        from ports.verifier.connector import taken

        for number, ids in enumerate(dialogues):
            params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
            engine.add_request(str(number), {"prompt_token_ids": ids}, params)
        while engine.has_unfinished_requests():
            engine.step()
        found: dict[int, Tensor] = {}
        for _ in range(FLUSHES):  # what has ended is handed on a step later
            if len(found) < len(dialogues):
                engine.step()
                kept = self._engine.collective_rpc(taken)[0]
                found |= {int(request.partition("-")[0]): states for request, states in kept.items()}
        return [found.get(number, torch.empty(0)) for number in range(len(dialogues))]

    def _features(self, states: Tensor, length: int) -> dict[str, Tensor]:
        entries, size = self._entries, verifier_config(self.model).hidden_size
        if states.shape != (length, len(entries), size):
            raise InputError(self.model, "vllm", f"states {[*states.shape]}", f"{[length, len(entries), size]}")
        last = applied(self._norm, states[:, -1]).to(states.dtype)
        if self.layers is None:
            return {"hidden_state": last}
        fused = torch.cat([states[:, entries.index(layer)] for layer in self.layers], dim=-1)
        return {"hidden_state": fused, "target": last}
