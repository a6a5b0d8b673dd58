"""DeepSpec's DSpark against Speculators' own port of it, ``speculators.models.dspark``: neither is this project's.

    parity run examples/pairs/dspark.py:DSPARK [--original DIR]
    parity record examples/pairs/dspark.py:DSPARK --original DIR --output FOLDER

``DIR`` is a checkout of deepseek-ai/DeepSpec. Without one the original is what was recorded of it. Both attend by SDPA
with dense masks, since FlexAttention has no backward on a CPU. Shapes: T positions, B slots a block, N blocks.
"""

from __future__ import annotations

import ports  # noqa: F401  # isort: skip  (a torchaudio of another build must not break transformers)

import importlib
import sys
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from speculators import SpeculatorsConfig, VerifierConfig
from speculators.losses import eager, utils
from speculators.models.dspark import DSparkDraftModel, DSparkSpeculatorConfig, metrics
from speculators.proposals.greedy import GreedyTokenProposalConfig
from torch import Tensor, distributed, nn
from torch.nn.attention.flex_attention import create_mask
from transformers import Qwen3Config, get_linear_schedule_with_warmup

from parity import Case, Cause, Clip, Copied, Draw, FolderSide, NameMap, Pair, Side, View, tap, within

T, B, N, RANK, LAYERS = 37, 4, 6, 8, 2
LAYER = Qwen3Config(
    vocab_size=53,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    attn_implementation="sdpa",
)
STEPS, WARMUP, RATE, GAMMA = 10, 2, 6e-4, 4.0
WEIGHTS = {"ce": 0.1, "l1": 0.9}


def batches(spans: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """Two batches of one sequence; the tokens of the spans are in the loss."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.zeros(1, T, dtype=torch.long)
    for begin, end in spans:
        mask[:, begin:end] = 1
    return [
        {
            "input_ids": torch.randint(0, 52, (1, T), generator=draw),
            "features": torch.randn(1, T, LAYERS * 32, generator=draw),
            "last": torch.randn(1, T, 32, generator=draw),
            "mask": mask,
        }
        for _ in range(2)
    ]


def verifier(model: Any) -> Any:
    """The embedding and the head that both take over from their verifier."""
    draw = torch.Generator().manual_seed(1)
    words, head = (torch.randn(53, 32, generator=draw) for _ in range(2))
    for name, value in {"embed_tokens": words, "lm_head": head, "verifier_lm_head": head}.items():
        if hasattr(model, name):
            getattr(model, name).weight = nn.Parameter(value.clone(), requires_grad=False)
    return model


def clipped(module: nn.Module, optimizer: Any) -> None:
    """Both trainers clip before they step."""
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()


def original(root: Path) -> Side:
    """DeepSpec's model, loss and optimizer."""
    sys.path.insert(0, str(root))
    models, common, loss, optim = (
        importlib.import_module(f"deepspec.{name}")
        for name in ("modeling.dspark.qwen3", "modeling.dspark.common", "modeling.dspark.loss", "utils.optim")
    )
    config = deepcopy(LAYER)
    config.update({"block_size": B, "num_anchors": N, "mask_token_id": 52, "target_layer_ids": [0, 1]})
    config.update({"markov_rank": RANK, "markov_head_type": "vanilla"})
    config.update({"enable_confidence_head": True, "confidence_head_with_markov": True})

    def measure(model: Any, batch: dict[str, Tensor]) -> Tensor:
        names = ("input_ids", "target_hidden_states", "target_last_hidden_states", "loss_mask")
        out = model(**dict(zip(names, batch.values())))
        out.draft_logits, out.confidence_pred = tap("logits", out.draft_logits), tap("confidence", out.confidence_pred)
        tap("labels", out.target_ids)
        tap("mask", out.eval_mask)
        terms, _ = loss._collect_local_terms(outputs=out, loss_decay_gamma=GAMMA, l1_loss_alpha=0.9)
        for name in (*WEIGHTS, "confidence"):
            tap(f"loss.{name}", (terms[f"{name}_loss_num"] / terms[f"{name}_loss_den"]).detach())
        named = {f"{name}_loss_alpha": weight for name, weight in WEIGHTS.items()}
        return loss.compute_dspark_loss(outputs=out, loss_decay_gamma=GAMMA, confidence_head_alpha=1.0, **named)

    @contextmanager
    def dense():
        with patch.object(common, "create_block_mask", create_mask), patch.object(distributed, "get_world_size", lambda: 1):
            yield

    def optimizer(model: Any) -> Any:
        return optim.BF16Optimizer(model, RATE, STEPS, WARMUP / STEPS)

    return within(dense)(Side(lambda: verifier(models.Qwen3DSparkModel(config)), measure, optimizer, step=clipped, name="DeepSpec"))


def build() -> Any:
    config = DSparkSpeculatorConfig(
        transformer_layer_config=deepcopy(LAYER),
        draft_vocab_size=53,
        block_size=B,
        aux_hidden_state_layer_ids=[0, 1],
        mask_token_id=52,
        markov_rank=RANK,
        speculators_config=SpeculatorsConfig(
            algorithm="dspark",
            proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=B)],
            default_proposal_method="greedy",
            verifier=VerifierConfig(name_or_path=None, architectures=["Qwen3ForCausalLM"]),
        ),
    )
    return ready(DSparkDraftModel(config))


def ready(model: Any) -> Any:
    """Features after the verifier's norm, as DeepSpec caches them."""
    model.verifier_norm = nn.Identity()
    return verifier(model)


def ce(logits: Tensor, targets: Tensor) -> Tensor:
    labels = tap("labels", targets.argmax(-1))
    return eager.ce_loss(logits, targets)


LOSSES = {"ce": (ce, 0.1), "tv": (eager.tv_loss, 0.9)}


def measure(model: Any, batch: dict[str, Tensor]) -> Tensor:
    names = ("input_ids", "hidden_states", "verifier_last_hidden_states", "loss_mask")
    given = {**dict(zip(names, batch.values())), "document_ids": torch.zeros_like(batch["input_ids"])}
    _, loss, found = model(**given, loss_config=LOSSES, tv_loss_fn=eager.tv_loss, gamma=GAMMA, max_anchors=N)
    for name, theirs in {"ce": "ce", "l1": "tv", "confidence": "confidence"}.items():
        tap(f"loss.{name}", found[f"{theirs}_loss_sum"])
    return loss


PORT = Side(
    build,
    measure,
    lambda parameters: torch.optim.AdamW(parameters, RATE),
    lambda optimizer: get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS),
    clipped,
    load=lambda folder: ready(DSparkDraftModel.from_pretrained(folder)).train(),
    taps={"speculators.models.dspark.metrics.compute_metrics": {"logits": "logits", "confidence_logits": "confidence", "loss_mask": "mask"}},
    clip=Clip("norm", 1.0),
    name="Speculators",
)
NAMES = NameMap(
    {"(whole)": None},
    copied=[Copied("lm_head", ("lm_head", "verifier_lm_head"))],
    calls={"lm_head#0": "verifier_lm_head", "lm_head#1": "lm_head"},
    arguments={"target_hidden_states": "target_hidden"},
)
DSPARK = Pair(
    "dspark",
    None,
    PORT,
    [Case("spans", batches([(8, 18), (21, 33)]), steps=STEPS)],
    NAMES,
    draws=[Draw("anchors", "deepspec.modeling.dspark.common:sample_anchor_positions", "speculators.models.dflash.utils:select_anchors", given=lambda drawn: drawn[0])],
    views=[View("mb0.tap*.*", original=lambda value, _: value.flatten(1, 2) if value.dim() > 2 else value)],
    live=original,
    remedy="git clone https://github.com/deepseek-ai/DeepSpec DIR",
)
