"""Which entries of the verifier's hidden states an original's features are."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from parity.environment import quietly
from parity.prototypes.case import Case
from parity.prototypes.explain.study import Cause, Side
from parity.prototypes.others.batch import first_samples, padded
from ports.training.data.feature_layers import chosen_layers

CAUSE = Cause(
    "feature-layers", "features are the entries 2, n // 2 and n - 3 of the verifier's states, one layer earlier each"
)


def features_side(case: Case, real: Tensor) -> Side:
    """Features [rows, 3h] of the first batch, from transformers' verifier: the prototype's layers or the cause's."""
    states = hidden_states(case, real)

    def side(causes: frozenset[str]) -> dict[str, Tensor]:
        rule = "speculators" if CAUSE.id in causes else "prototype"
        layers = chosen_layers(rule, str(case.verifier), len(states) - 1)
        return {"features": torch.cat([states[layer] for layer in layers], dim=-1)[real.bool()]}

    return side


def hidden_states(case: Case, real: Tensor) -> list[Tensor]:
    """Embedding and output of every layer [B, T, h], in float32."""
    with quietly():
        verifier = AutoModelForCausalLM.from_pretrained(case.verifier, dtype=torch.float32)
    with torch.no_grad():
        ids = padded(first_samples(case), "input_ids")
        seen = verifier(input_ids=ids, attention_mask=real, output_hidden_states=True)
    return list(seen.hidden_states)
