"""Speculators' Eagle3 draft, unrolled for training-time test.

Shapes: B batch, T positions, h hidden size, D draft vocabulary, k TTT steps.
"""

from __future__ import annotations

import torch
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from torch import Tensor, nn

from ports.eagle3.first_layer import first_layer
from ports.training.alignment import Alignment
from ports.training.attention.choice import AttentionImplementation, attention_name
from ports.training.attention.dense import ttt_cache
from ports.training.attention.documents import documents_of
from ports.training.attention.recompute import run_layer
from ports.training.attention.trained_rows import TrainedRows, on_trained_rows
from ports.training.loss.steps import Step, in_this_precision, next_hidden
from ports.training.vocabulary import VocabularyMap


def build_draft(
    config: Eagle3SpeculatorConfig,
    vocabulary: VocabularyMap,
    alignment: Alignment,
    implementation: AttentionImplementation = AttentionImplementation.AUTO,
) -> Eagle3DraftModel:
    """Speculators' own model with its verifier attached, the TTT attention selected and ``lm_head`` trainable.

    Speculators loads embedding, head rows and final norm from the verifier and freezes them; the prototype trains the
    head, so it is thawed again. The embedding never gets a gradient in either: it stays frozen even where the config
    asks for ``embed_requires_grad``, so that no optimizer lets it decay.
    """
    config.transformer_layer_config._attn_implementation = attention_name(alignment, implementation)
    draft = Eagle3DraftModel(config)
    _initialise(draft)
    draft.load_vocab_mappings(vocabulary.t2d, vocabulary.d2t)
    draft.load_verifier_weights()
    return thaw_head(draft)


def thaw_head(draft: Eagle3DraftModel) -> Eagle3DraftModel:
    """Let train what the prototype trains: the head too, and never the embedding."""
    draft.lm_head.weight.requires_grad_(True)
    draft.embed_tokens.weight.requires_grad_(False)
    return draft


def _initialise(draft: Eagle3DraftModel) -> None:
    """Start the trained matrices from torch's own distribution, as the prototype does; norms start at one in both."""
    for module in (draft.fc, *draft.layers.modules()):
        if isinstance(module, nn.Linear):
            module.reset_parameters()


def unroll(
    draft: Eagle3DraftModel,
    features: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    ttt_steps: int,
    recompute: bool = False,
    loss_mask: Tensor | None = None,
) -> list[Step]:
    """Run the draft on its own outputs ``ttt_steps`` times; nothing is detached.

    Every step reads the same ids; its hidden state moves one position to the right, the first position stays. Keys and
    values of earlier steps come from the cache, projected once, as is what the embeddings give to all of them.

    Args:
        features: [B, T, 3h], the verifier's auxiliary hidden states.
        input_ids: [B, T], already shifted.
        attention_mask: [B, T], 1 on real positions; or one packed row of
                :mod:`ports.training.attention.documents`.
        recompute: keep no activations of the layers, see :mod:`ports.training.attention.recompute`.
        loss_mask: [B, T], not 0 on the rows in the loss: only there does the last step have a gradient, see
            :mod:`ports.training.attention.trained_rows`. Default: everywhere.
    """
    embeds, documents = embed(draft, input_ids), documents_of(attention_mask)
    rotary = draft.rotary_emb(embeds, documents.positions)
    cache = ttt_cache()
    hidden = draft.fc(features.to(draft.fc.weight.dtype))
    head = in_this_precision(lambda out: draft.lm_head(draft.norm(out)), features.device.type)
    context = {"attention_mask": attention_mask, "position_embeddings": rotary}
    first, steps = first_layer(draft.layers[0], embeds), []
    trained = None if loss_mask is None else TrainedRows(loss_mask)
    for step in range(ttt_steps):
        rows = trained if step == ttt_steps - 1 else None
        out = run_layer(first, hidden, cache, recompute, rows=None if draft.layers[1:] else rows, **context)
        for layer in draft.layers[1:]:
            last = layer is draft.layers[-1]
            out = run_layer(on_trained_rows(layer, rows if last else None), out, cache, recompute, **context)
        steps.append(Step(hidden, out, head))
        hidden = next_hidden(hidden, out, documents.first)
    return steps


def embed(draft: Eagle3DraftModel, input_ids: Tensor) -> Tensor:
    """Token embeddings [B, T, h], without gradient."""
    with torch.no_grad():
        embeds: Tensor = draft.embed_tokens(input_ids)
    return embeds
