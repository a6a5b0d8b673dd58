"""HASS as a vLLM model: EAGLE-1 with norms on the token, on the hidden state and before the head.

Shapes: N tokens of all requests in one row, h hidden size, V vocabulary, D the draft's. vLLM reads the annotations of
``forward`` as types, so they are not postponed here.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.llama_eagle import EagleLlamaForCausalLM, LlamaModel
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix, process_eagle_weight

RENAMED = {"lm_head_layernorm.weight": "output_layernorm.weight"}
"""vLLM takes every tensor with lm_head in its name for a head."""
OUTSIDE = ("lm_head.weight", "d2t")
"""What a draft with a vocabulary of its own has beside its layers."""


@support_torch_compile
class HassModel(LlamaModel):
    """Norms, ``fc`` and Llama layers, the first of which has no input norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", start_layer_id: int = 0) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, start_layer_id=start_layer_id)
        size, eps = self.config.hidden_size, self.config.rms_norm_eps
        self.embed_layernorm = nn.Identity() if self.config.folded_embedding else RMSNorm(size, eps=eps)
        self.hidden_layernorm = RMSNorm(size, eps=eps)
        self.output_layernorm = RMSNorm(size, eps=eps)

    def forward(self, input_ids: Tensor, positions: Tensor, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """What the head reads and what the next token's pass reads, both [N, h], from ids [N] and states [N, h]."""
        embeds = self.embed_layernorm(self.embed_tokens(input_ids))
        out = self.fc(torch.cat([embeds, self.hidden_layernorm(hidden_states)], dim=-1))
        residual = None
        for layer in self.layers:
            out, residual = layer(positions, out, residual)
        out = out + residual
        return self.output_layernorm(out), out


class EagleHassForCausalLM(EagleLlamaForCausalLM):  # type: ignore[misc]
    """The draft with the verifier's head, and the verifier's embedding unless the checkpoint holds one.

    A draft with a vocabulary of its own brings its rows of the head.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        self.config = vllm_config.speculative_config.draft_model_config.hf_config
        above = vllm_config.model_config.get_num_layers(vllm_config.parallel_config)
        where = maybe_prefix(prefix, "model")
        self.model = HassModel(vllm_config=vllm_config, prefix=where, start_layer_id=above)
        size, self.d2t = self.config.draft_vocab_size, None
        self.logits_processor = LogitsProcessor(size)
        if size < self.config.vocab_size:
            self.lm_head = ParallelLMHead(size, self.config.hidden_size, prefix=maybe_prefix(prefix, "lm_head"))
            self.d2t = nn.Parameter(torch.zeros(size, dtype=torch.int64), requires_grad=False)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """[N, V] of hidden states [N, h]; -inf for tokens that the draft does not have."""
        logits = self.logits_processor(self.lm_head, hidden_states)
        if self.d2t is None:
            return logits
        whole = logits.new_full((len(logits), self.config.vocab_size), float("-inf"))
        whole[:, self.d2t + torch.arange(len(self.d2t), device=logits.device)] = logits
        return whole

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """Load a checkpoint whole.

        Raises:
            ValueError: a tensor of the draft is missing; vLLM itself would go on with what lay in memory.
        """
        named = [(name if name in OUTSIDE else f"model.{RENAMED.get(name, name)}", value) for name, value in weights]
        for name, _ in named:
            process_eagle_weight(self, name)
        loaded = AutoWeightsLoader(self).load_weights(named)
        missing = {name for name, _ in self.named_parameters()} - loaded - {"model.embed_tokens.weight"}
        if missing or (self.config.folded_embedding and "model.embed_tokens.weight" not in loaded):
            raise ValueError(f"HASS checkpoint: missing {sorted(missing) or 'embed_tokens.weight'}")
        return loaded
