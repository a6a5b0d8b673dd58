"""What a failed row comes from: the first module where port and reference part.

The modules go by the draft's names, their calls are the TTT steps; the search is the kit's, on the first batch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parity.calls import WHOLE, Call, call_of, gradients_of, keep_calls, watch
from parity.environment import deterministic
from parity.files import read_tensors
from parity.locate import Comparator, first_backward, first_forward
from parity.prototypes.case import RecordedCase
from parity.prototypes.port import start_port
from parity.prototypes.reference.data import batches_of
from parity.prototypes.reference.loop import prepare
from parity.trace import Trace
from parity.trace_pair import TracePair
from parity.verdict import Finding, Row

AGREE = 1e-4
"""Relative to the largest entry: far above rounding, far below what a fault does."""

LOCALISED = ("forward", "loss", "cross_step_grad", "gradients")

Passages = tuple[list[Call], dict[str, Tensor]]
"""The modules' calls in the order in which they ended, one a TTT step, and the parameters' gradients."""


def hint(row: Row, evidence: TracePair) -> str:
    """Where the port parts from the reference, for a failed row of the forward or backward; empty: nothing known."""
    if evidence.left is None or row.check not in LOCALISED:
        return ""
    return str(localise(evidence.case) or "module by module both sides agree on the first batch")


def localise(case: RecordedCase) -> Finding | None:
    """Run both sides in float32 on the case's first batch and find where they part, forward before backward."""
    with deterministic():
        (expected, grads), (found, own) = reference_passages(case), port_passages(case, mixed_precision="no")
    agree = Comparator(AGREE)
    forward = first_forward(expected, found, agree, every_module=True)
    return forward or first_backward(expected, found, (grads, own), agree)


def trace_calls(case: RecordedCase, trace: Trace) -> None:
    """Put the port's calls on the longest row of the first batch into its trace."""
    with deterministic():
        calls, _ = port_passages(case)
    keep_calls(trace, calls)


def longest_row(case: RecordedCase) -> dict[str, Tensor]:
    """The row of the first batch without padding: at padded positions the two sides may hold what they like."""
    batch = next(batches_of(case))
    row = int(batch["attention_mask"].sum(1).argmax())
    return {name: value[row : row + 1] for name, value in batch.items()}


def reference_passages(case: RecordedCase) -> Passages:
    """The reference's, but for HASS' norm of the embeddings, which the port makes once for all steps.

    Embeddings are the verifier's own, as the port's are: those of a run under DeepSpeed are rounded.
    """
    calls: list[Call] = []
    setup = prepare(case)
    setup.frozen["embed_tokens.weight"] = read_tensors(case.initial)["verifier.embed_tokens.weight"].float()
    weights = setup.weights()
    out = setup.forward(weights, longest_row(case), tap=lambda *seen: calls.append(call_of(*seen)))
    torch.stack(list(out.backward)).sum().backward()
    return [call for call in calls if call.module != "embed_layernorm"], gradients_of(weights)


def port_passages(case: RecordedCase, **changes: Any) -> Passages:
    """The port's, watched; only the eager loss calls norm and head as modules.

    Inputs are shared as the reference shares them, so that their gradients are those of all who read them.
    """
    with tempfile.TemporaryDirectory() as folder:
        objective: Any = start_port(case, Path(folder), loss_implementation="eager", **changes).objective
        batch = longest_row(case)
        objective.train()
        with watch(objective.draft, own_inputs=False) as calls:
            loss = objective({**batch, "features": batch["hidden_states"]}).backward_loss
        loss.backward()
    return [call for call in calls if call.module != WHOLE], gradients_of(dict(objective.draft.named_parameters()))
