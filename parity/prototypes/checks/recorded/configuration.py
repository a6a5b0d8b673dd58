"""Before any number: did both sides run the same thing, in the same way?"""

from __future__ import annotations

import torch
from torch import Tensor

from parity.compare import compare_groups, compare_value
from parity.files import read_tensors
from parity.prototypes.checks.evidence import Evidence
from parity.verdict import Row

HYPERPARAMETERS = (
    *("lr", "bs", "accumulation", "epoch", "ttt_steps", "noise", "shuffle", "betas", "eps", "weight_decay"),
    *("total_steps", "warmup_steps", "max_len", "samples", "seed"),
)
MODES = {
    "threads": 1,
    "tf32": False,
    "matmul_precision": "highest",
    "default_dtype": "torch.float32",
    "deterministic": True,
}


def check_environment(evidence: Evidence) -> list[Row]:
    """The numeric modes that make a run repeatable."""
    subject, found = evidence.subject("environment"), evidence.found.environment
    return [compare_value(subject, "mode", name, value, found.get(name)) for name, value in MODES.items()]


def check_configuration(evidence: Evidence) -> list[Row]:
    """Hyperparameters as each side holds them, the samples in order, the weights at the start, the vocabulary map."""
    subject = evidence.subject("configuration")
    expected, found = evidence.expected.configuration, evidence.found.configuration
    names = [name for name in HYPERPARAMETERS if name in expected]
    rows = [compare_value(subject, "configuration", name, expected[name], found.get(name)) for name in names]
    tolerance = evidence.tolerance("weights")
    start, own = evidence.expected.group("init."), evidence.found.group("init.")
    start = {name: _as_trained(evidence, value) for name, value in start.items() if name != "embed_tokens.weight"}
    rows += compare_groups(subject, "weights", start, {name: own[name] for name in own if name in start}, tolerance)
    return rows + _vocabulary(evidence)


def _as_trained(evidence: Evidence, value: Tensor) -> Tensor:
    """DeepSpeed rounds the weights to bfloat16 before it makes its float32 masters."""
    return value.to(torch.bfloat16).float() if evidence.case.dtype == "bf16ds" else value


def _vocabulary(evidence: Evidence) -> list[Row]:
    if evidence.draft is None or getattr(evidence.draft, "d2t", None) is None:
        return []
    stored = read_tensors(evidence.case.initial)
    expected: dict[str, Tensor] = {name: stored[name] for name in ("t2d", "d2t") if name in stored}
    found: dict[str, Tensor] = {name: getattr(evidence.draft, name) for name in expected}
    return compare_groups(
        evidence.subject("configuration"), "vocabulary", expected, found, evidence.tolerance("vocabulary")
    )
