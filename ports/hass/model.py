"""The HASS draft as a Speculators model.

Shapes: B batch, T positions, h hidden size, V the verifier's vocabulary, k TTT steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from speculators import SpeculatorModel
from speculators.models.base_components import model_classes
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ports.hass.config import HassSpeculatorConfig
from ports.hass.objective import packed_batch, train_forward
from ports.training.alignment import Alignment
from ports.training.attention import attention_name, ttt_cache
from ports.training.masks import documents_of
from ports.training.objective import Step, in_this_precision, next_hidden
from ports.training.shared_compute import SharedHalf, TrainedRows, can_split, run_layers
from ports.training.tied_verifier_ends import TiedVerifierEnds

Fusion = Callable[[Tensor], Tensor]
"""From a normed hidden state [B, T, h] to what enters the layers [B, T, h]."""


@SpeculatorModel.register("hass")
class HassDraftModel(TiedVerifierEnds):
    """Decoder layers between the verifier's embedding and the verifier's head.

    The embedded token and the hidden state are normed apart, fused by ``fc``, and run through Llama layers, of which
    the first has no input norm of its own; the residual stream starts at the output of ``fc``.
    """

    config_class: ClassVar[type[HassSpeculatorConfig]] = HassSpeculatorConfig

    def __init__(self, config: HassSpeculatorConfig) -> None:
        layer = config.transformer_layer_config
        layer._attn_implementation = attention_name(Alignment(config.ttt_alignment))
        super().__init__(config)
        parts, width = model_classes[layer.model_type], layer.hidden_size
        self.embed_layernorm = parts.norm_class(width, eps=layer.rms_norm_eps)
        self.hidden_layernorm = parts.norm_class(width, eps=layer.rms_norm_eps)
        self.lm_head_layernorm = parts.norm_class(width, eps=layer.rms_norm_eps)
        self.fc = nn.Linear(2 * width, width, bias=False)
        self.layers = nn.ModuleList(parts.decoder_layer_class(layer, i) for i in range(layer.num_hidden_layers))
        self.layers[0].input_layernorm = nn.Identity()
        self.rotary_emb = parts.rotary_emb_class(layer)
        self.post_init()

    @property
    def alignment(self) -> Alignment:
        """Where keys and values of earlier TTT steps are read."""
        return Alignment(self.config.ttt_alignment)

    @property
    def target_layer_ids(self) -> list[int]:
        """Verifier layers whose outputs Speculators' trainer must bring besides the last one's: none."""
        return []

    def forward(
        self,
        *args: Any,
        document_ids: Tensor | None = None,
        verifier_last_hidden_states: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """:meth:`unroll`; with the last two arguments the forward that Speculators' own trainer calls.

        Args:
            args, kwargs: of :meth:`unroll`. That trainer's ``input_ids`` and ``loss_mask`` [1, T] are as they were
                said, not shifted; what else its batches hold is not read.
            document_ids: [1, T], from 0 on, -1 on padding.
            verifier_last_hidden_states: [1, T, h], before the verifier's final norm.

        Returns:
            The k steps; for that trainer them, the loss to run backward on and metrics.
        """
        if verifier_last_hidden_states is None or document_ids is None:
            return self.unroll(*args, **kwargs)
        said, loss_mask = kwargs["input_ids"], kwargs.get("loss_mask")
        batch = packed_batch(self, verifier_last_hidden_states, said, document_ids, loss_mask)
        return train_forward(self, batch, kwargs.get("ttt_steps", 1))

    def unroll(
        self,
        hidden_states: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        ttt_steps: int = 1,
        recompute: bool = False,
        loss_mask: Tensor | None = None,
    ) -> list[Step]:
        """Run the draft ``ttt_steps`` times, on its own outputs after the first.

        Every step reads the same ids. A step's input is detached from the steps before it, so gradients reach a weight
        only through the step that used it and through the keys and values that it projected from detached states.

        Args:
            hidden_states: [B, T, h], the verifier's last hidden state after its final norm.
            input_ids: [B, T] int64, shifted: the token that follows each hidden state.
            attention_mask: [B, T], 1 on real positions; or one packed row of :mod:`ports.training.attention`.
                Default: no padding.
            ttt_steps: k.
            recompute: keep no activations of the layers.
            loss_mask: [B, T], not 0 on the rows in the loss: only there has a step's output a gradient, see
                :mod:`ports.training.shared_compute`. Default: everywhere.

        Returns:
            One :class:`~ports.training.objective.Step` for each of the k steps, logits [B, T, V].
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        fuse, cache = self.fusion(self.embed(input_ids)), ttt_cache()
        hidden = hidden_states.detach().to(self.hidden_layernorm.weight.dtype)
        head = in_this_precision(lambda out: self.lm_head(self.lm_head_layernorm(out)), hidden.device.type)
        steps, first = [], documents_of(mask).first
        rows = None if loss_mask is None else TrainedRows(loss_mask)
        for _ in range(ttt_steps):
            out = self.step(fuse, hidden, mask, cache, recompute, rows)
            steps.append(Step(hidden, out, head))
            hidden = next_hidden(hidden, out.detach(), first)
        return steps

    def embed(self, input_ids: Tensor) -> Tensor:
        """Normed token embeddings [B, T, h]; the lookup is without gradient, the norm is not."""
        with torch.no_grad():
            embeds = self.embed_tokens(input_ids)
        return self.embed_layernorm(embeds)

    def fusion(self, embeds: Tensor) -> Fusion:
        """``fc`` bound to the normed embeddings [B, T, h], whose half of the product the steps share."""
        if can_split(self.fc, [self.fc]):
            return SharedHalf(embeds, self.fc.weight)
        return lambda normed: self.fc(torch.cat([embeds, normed], dim=-1))

    def step(
        self,
        fuse: Fusion,
        hidden: Tensor,
        attention_mask: Tensor,
        cache: Cache,
        recompute: bool = False,
        rows: TrainedRows | None = None,
    ) -> Tensor:
        """One pass through fusion and layers.

        Args:
            fuse: see :meth:`fusion`.
            hidden: [B, T, h].
            attention_mask: as in :meth:`unroll`.
            cache: keys and values of earlier steps; this step's are added.
            recompute: as in :meth:`unroll`.
            rows: those whose output has a gradient; default: all.

        Returns:
            [B, T, h] in the dtype of ``hidden``, before ``lm_head_layernorm``.
        """
        out = fuse(self.hidden_layernorm(hidden))
        rotary = self.rotary_emb(out, documents_of(attention_mask).positions)
        context = {"attention_mask": attention_mask, "position_embeddings": rotary}
        out = run_layers(self.layers, out, cache, recompute, rows, **context)
        return out.to(hidden.dtype)
