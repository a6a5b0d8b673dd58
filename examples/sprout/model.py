"""The Sprout draft as a Speculators model.

Shapes: B batch, T positions, h hidden size, V the verifier's vocabulary, k TTT steps.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from speculators import SpeculatorModel
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding

from ports.training.alignment import Alignment
from ports.training.attention import attention_name, ttt_cache
from ports.training.masks import documents_of
from ports.training.objective import Step, in_this_precision, next_hidden
from ports.training.tied_verifier_ends import TiedVerifierEnds
from sprout.config import SproutConfig


@SpeculatorModel.register("sprout")
class SproutModel(TiedVerifierEnds):
    """Token and hidden state joined, one attention and one gate with a residual each."""

    config_class: ClassVar[type[SproutConfig]] = SproutConfig

    def __init__(self, config: SproutConfig) -> None:
        layer = config.transformer_layer_config
        layer._attn_implementation = attention_name(Alignment.CHAIN)
        super().__init__(config)
        self.fc = nn.Linear(2 * layer.hidden_size, layer.hidden_size)
        self.input_layernorm = LlamaRMSNorm(layer.hidden_size, layer.rms_norm_eps)
        self.self_attn = LlamaAttention(layer, 0)
        self.mlp = nn.Linear(layer.hidden_size, layer.hidden_size, bias=False)
        self.norm = LlamaRMSNorm(layer.hidden_size, layer.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(layer)
        self.post_init()

    def forward(
        self, hidden_states: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, ttt_steps: int = 1
    ) -> list[Step]:
        """Run the draft ``ttt_steps`` times, on its own outputs after the first.

        Args:
            hidden_states: [B, T, h], the verifier's last hidden state after its final norm.
            input_ids: [B, T] int64, shifted: the token that follows each hidden state.
            attention_mask: [B, T], 1 on real positions; or the documents of a packed row. Default: no padding.
            ttt_steps: k.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embeds, documents = self.embed_tokens(input_ids), documents_of(mask)
        rotary = self.rotary_emb(embeds, documents.positions)
        head = in_this_precision(lambda out: self.lm_head(self.norm(out)), hidden_states.device.type)
        hidden, steps = hidden_states.to(self.fc.weight.dtype), []
        for _ in range(ttt_steps):
            out = self.fc(torch.cat([hidden, embeds], dim=-1))
            out = out + self.attend(self.input_layernorm(out), rotary, mask)
            out = out + nn.functional.silu(self.mlp(out))
            steps.append(Step(hidden, out, head))
            hidden = next_hidden(hidden, out, documents.first)
        return steps

    def attend(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """Causal attention among the positions of this step alone."""
        attended: Tensor = self.self_attn(
            hidden, position_embeddings=rotary, attention_mask=mask, past_key_values=ttt_cache()
        )[0]
        return attended
