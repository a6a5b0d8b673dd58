"""A report like a real one: nine cases, two runs, something failed, blocked, skipped and not finite."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from parity.verdict import Curve, Deviation, GradientFlow, Report, Row, Skip, Speed, Status

CASES = (
    "eagle3_fp32_k1",
    "eagle3_fp32_k2",
    "eagle3_fp32_k3",
    "eagle3_fp32_k5",
    "eagle3_fp32_k3_noise",
    "eagle3_bf16ds_k3",
    "hass_fp32_k1",
    "hass_fp32_k3",
    "hass_bf16_k3",
)
RUNS = ("reference", "port")
PARAMETERS = (
    "embed_tokens.weight",
    "fc.weight",
    "input_layernorm.weight",
    "hidden_norm.weight",
    "lm_head_layernorm.weight",
    "lm_head.weight",
    *(f"layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "layers.0.post_attention_layernorm.weight",
)
CHECKS = (
    ("batch", "batch", 0.0, ("input_ids", "loss_mask", "attention_mask", "hidden_states", "target")),
    ("logits", "logits", 4e-6, tuple(f"step{s}.logits" for s in range(3))),
    ("losses", "loss", 1e-6, tuple(f"step{s}.kldiv_loss" for s in range(3))),
    ("gradients", "gradient", 1e-6, PARAMETERS),
    ("update", "parameter", 2e-5, PARAMETERS),
    ("trajectory", "curve", 2e-6, ("loss", "grad_norm", "hits")),
    ("round_trip", "weight", 0.0, PARAMETERS),
)


def build_report() -> Report:
    """The same report at every call."""
    source = random.Random(7)
    report = Report(environment=ENVIRONMENT, deviations=list(DEVIATIONS), skips=list(SKIPS), speeds=list(SPEEDS))
    for case in CASES:
        for run in RUNS:
            report.rows += _rows(case, run, source)
        report.curves += _curves(case, source)
        report.gradient_flow += _flow(case)
    report.notes.append("The recordings were made with torch 2.13.0; this is torch 2.11.0.")
    return report


def _rows(case: str, run: str, source: random.Random) -> list[Row]:
    wrong = {("eagle3_fp32_k5", "port"): "logits", ("hass_bf16_k3", "port"): "trajectory"}.get((case, run))
    rows, blocked = [], False
    for check, quantity, allowed, tensors in CHECKS:
        measured = [allowed * 10 ** source.uniform(-2.5, -0.1) for _ in tensors]
        status = Status.BLOCKED if blocked else Status.PASSED
        passed = [Row(check, case, run, quantity, t, m, allowed, status) for t, m in zip(tensors, measured)]
        rows += [_broken(row) if check == wrong else row for row in passed]
        blocked = blocked or check == wrong
    return rows


def _broken(row: Row) -> Row:
    if row.tensor not in ("step2.logits", "loss"):
        return row
    if row.tensor == "loss":
        detail, hint = "first NaN at micro-batch 23: NaN against 4.031", "a masked row divided by a count of 0"
        return replace(row, measured=math.nan, status=Status.FAILED, detail=detail, hint=hint)
    detail = "largest at [1, 17, 203]: 2.417603 against 0.829114"
    hint = "steps 0 and 1 agree and step 2 does not: look at the keys of earlier draft steps (own-position-kv)"
    return replace(row, measured=1.588489, status=Status.FAILED, detail=detail, hint=hint)


def _curves(case: str, source: random.Random) -> list[Curve]:
    length = 1 if case == "hass_fp32_k1" else 40
    loss = [9.1 * math.exp(-i / 14) + 2.2 + source.gauss(0, 0.15) for i in range(length)]
    broken = [math.nan if case == "hass_bf16_k3" and i >= 23 else value for i, value in enumerate(loss)]
    port = [value * (1 + source.gauss(0, 4e-7) * (1 + i / 8)) for i, value in enumerate(broken)]
    norms = tuple(abs(source.gauss(1.2, 0.3)) for _ in loss)
    return [
        Curve(case, "prototype", "loss", tuple(loss)),
        Curve(case, "reference", "loss", tuple(loss)),
        Curve(case, "port", "loss", tuple(port)),
        Curve(case, "prototype", "grad_norm", norms),
        Curve(case, "port", "grad_norm", tuple(value * (1 + 1e-6) for value in norms)),
        Curve(case, "prototype", "lr", tuple(1e-3 * min(1, i / 2) * (1 - i / 60) for i in range(length))),
    ]


def _flow(case: str) -> list[GradientFlow]:
    flows = []
    for run in ("prototype", *RUNS):
        for index, name in enumerate(PARAMETERS):
            embedding = name.startswith("embed")
            frozen = embedding and case.startswith("hass")
            dead = embedding or (case == "hass_bf16_k3" and run == "port" and "norm" in name)
            grad_max, moved = (None, 0.0) if dead else (0.02 * (index + 1), 2.1e-2)
            flows.append(GradientFlow(case, run, name, not frozen, grad_max, moved))
    return flows


ENVIRONMENT = {
    "machine": "x86_64, 2 cores",
    "threads": 1,
    "deterministic": True,
    "dtypes": ["float32", "bfloat16"],
    "versions": {"python": "3.11.2", "torch": "2.11.0+cpu", "transformers": "5.19.0", "speculators": "0.9.0"},
    "recordings": {"commit": "227b8a1b4bd4c9afb5cebd8cdd1612a71f4bd29d", "torch": "2.13.0"},
}
SKIPS = (
    Skip("live_original", "eagle3_fp32_k3", "no checkout of the prototypes was given", "pass --prototypes PATH"),
    Skip("throughput", "hass_bf16_k3", "no accelerator with bfloat16", "run on a machine with a GPU"),
)
DEVIATIONS = (
    Deviation(
        "own-position-kv",
        "TTT attention, step 2 and later",
        "logits differ from the chain that Speculators and vLLM compute",
        "switch `own_position_keys`, on in parity runs, off by default",
        "tests/ports/test_attention.py::test_own_position_keys",
    ),
    Deviation(
        "unshifted-mask", "loss mask", "one position per answer", "switch `shift_mask`", "test_batches.py::test_mask"
    ),
    Deviation("epoch-plus-one", "loop", "n+1 passes", "as the prototype, with a warning", "test_loop.py::test_passes"),
)
SPEEDS = (
    Speed(
        case="eagle3_fp32_k3",
        prototype="prototype",
        port="port",
        prototype_seconds=(3.9, 3.78, 3.81),
        port_seconds=(1.43, 1.41, 1.44),
        prototype_flops=31_400_000_000_000,
        port_flops=19_800_000_000_000,
        ratio=2.68,
        interval=(2.55, 2.77),
        tokens=1024,
    ),
)


@pytest.fixture
def demo_report() -> Report:
    return build_report()
