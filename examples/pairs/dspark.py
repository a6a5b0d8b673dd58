"""DeepSpec's DSpark against ``speculators.models.dspark``: a port that exists, and neither side is this project's.

    parity run examples/pairs/dspark.py:DSPARK [--original DIR]
    parity record examples/pairs/dspark.py:DSPARK --original DIR --output FOLDER

``DIR`` is a checkout of deepseek-ai/DeepSpec. Without one the original is what was recorded of it. Both attend by SDPA
and dense masks, which both offer: FlexAttention has no backward on a CPU. Shapes: N blocks of B slots in T positions.
"""

from __future__ import annotations

import ports  # noqa: F401  # isort: skip  (a torchaudio of another build must not break transformers)

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import blocks
import torch
from blocks import CORE, RATE, STEPS, WARMUP, B, N, T
from speculators import SpeculatorsConfig, VerifierConfig
from speculators.losses import eager
from speculators.models.dspark import DSparkDraftModel, DSparkSpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_mask
from torch.optim import AdamW
from transformers import Qwen3Config, get_linear_schedule_with_warmup

from parity import (
    Case,
    Clip,
    Draw,
    FolderSide,
    Kind,
    KnownDifference,
    NameMap,
    Pair,
    Replicated,
    Side,
    Tolerance,
    View,
    edit_module,
    replace_functions,
    tap,
)

METRICS = "speculators.models.dspark.metrics"
GAMMA = 4.0
SIZES = {"vocab_size": 53, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "sdpa"}
SHARED = {"block_size": B, "mask_token_id": 52, "markov_rank": 8, "markov_head_type": "vanilla"}
OWN = {"target_layer_ids": [0, 1], "num_anchors": N, "enable_confidence_head": True}


def ce(logits: Tensor, targets: Tensor) -> Tensor:
    labels = tap("labels", getattr(targets, "labels", targets.argmax(-1)))
    return F.cross_entropy(logits[0], labels[0], reduction="none")[None]


# the l1 term looks its function up when it is called, so that a known difference can stand in for it and for it alone
OBJECTIVE = {"loss_config": {"ce": (ce, 0.1), "l1": (lambda *x: eager.tv_loss(*x), 0.9)}, "tv_loss_fn": eager.tv_loss}


def batches(*spans: tuple[int, int]) -> list[dict[str, Any]]:
    return blocks.sequences(spans, 32, 52, gamma=GAMMA, **OBJECTIVE)


def original(_: Path) -> Side:
    """DeepSpec's model, loss and optimizer, in one process and with a dense mask."""
    from deepspec.modeling.dspark.loss import compute_dspark_loss
    from deepspec.modeling.dspark.qwen3 import Qwen3DSparkModel
    from deepspec.utils.optim import BF16Optimizer

    def build() -> Any:
        model = Qwen3DSparkModel(Qwen3Config(**SIZES, **HEADS, **SHARED, **OWN, confidence_head_with_markov=True))
        for part in (model.embed_tokens, model.lm_head):
            part.weight.data.normal_()
        model.set_embedding_head_trainable(False)
        return model

    def loss(model: Any, batch: dict[str, Any]) -> Tensor:
        passed = F.rms_norm(batch["verifier_last_hidden_states"], (32,), eps=1e-6)
        out = model(batch["input_ids"], batch["hidden_states"], batch["loss_mask"], passed)
        out.draft_logits, out.confidence_pred = tap("logits", out.draft_logits), tap("confidence", out.confidence_pred)
        tap("labels", out.target_ids), tap("mask", out.eval_mask.long())
        weights = {"ce_loss_alpha": 0.1, "l1_loss_alpha": 0.9, "confidence_head_alpha": 1.0}
        return compute_dspark_loss(outputs=out, loss_decay_gamma=GAMMA, **weights)

    def metric(_: Any, name: str, value: Tensor, den: Any = 1, **__: Any) -> None:
        if name.endswith("_loss"):
            tap(name, (value / den).detach())

    here = {
        "deepspec.modeling.dspark.common:create_block_mask": lambda _, *given, **named: create_mask(*given, **named),
        "deepspec.utils.metrics:add_metric": metric,
        "torch.distributed:get_world_size": lambda _: 1,
    }
    optimizer = partial(BF16Optimizer, lr=RATE, total_steps=STEPS, warmup_ratio=WARMUP / STEPS)
    return replace_functions(here)(Side(build, loss, optimizer, step=Clip("norm", 1.0), name="DeepSpec"))


def build() -> Any:
    layer = {"transformer_layer_config": Qwen3Config(**SIZES, **HEADS), "aux_hidden_state_layer_ids": [0, 1]}
    serve = {"proposal_methods": [GreedyTokenProposalConfig(speculative_tokens=B)], "default_proposal_method": "greedy"}
    verifier = VerifierConfig(name_or_path=None, architectures=[])
    layer["speculators_config"] = SpeculatorsConfig(algorithm="dspark", verifier=verifier, **serve)
    return DSparkDraftModel(DSparkSpeculatorConfig(draft_vocab_size=53, **layer, **SHARED))


SEEN = {"logits": "logits", "confidence_logits": "confidence", "loss_mask": "mask"}
SEEN |= {f"returned.1.{name}_loss_sum": f"{name}_loss" for name in ("ce", "l1", "confidence")}
PORT = Side(
    build,
    optimizer=lambda parameters: AdamW(parameters, RATE),
    schedule=lambda optimizer: get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS),
    taps={f"{METRICS}.compute_metrics": SEEN},
    step=Clip("norm", 1.0),
    name="Speculators",
)


def backbone(change: Callable[..., Tensor]) -> Any:
    """Another mask [1, N * B], of Speculators' own, its targets, and the ids and mask of the slots' next tokens."""

    def run(real: Any, model: Any, x: Tensor, ids: Tensor, mask: Tensor, *rest: Any, **named: Any) -> Any:
        *states, targets, own, places = real(model, x, ids, mask, *rest, **named)
        following = (F.pad(one, (0, B))[:, places + 1] for one in (ids, mask))
        return *states, targets, change(own, targets, *following), places

    return replace_functions({f"{CORE}:DFlashDraftModel._backbone_forward": run})


def label(own: Tensor, targets: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    targets.labels = ids
    return own


def mean(_: Any, values: Tensor, mask: Tensor, slots: Tensor, *__: Any) -> Tensor:
    weights = mask * torch.exp(-slots / GAMMA)
    return (values * weights).sum() / (weights.sum() + 1e-6)


def mean_of(real: Any, logits: Tensor, targets: Tensor, *rest: Any, loss_fn: Any, **_: Any) -> Tensor:
    return mean(real, loss_fn(logits, targets), *rest)


def heads(model: Any) -> None:
    for value in (*model.markov_head.parameters(), *model.confidence_head.parameters()):
        nn.init.normal_(value, std=0.02 * (value.dim() > 1))


MEANS = {f"{METRICS}:_masked_decayed_mean": mean, "speculators.losses.utils:loss_function": mean_of}
PREFIX = backbone(lambda own, *_: own.view(N, B).cumprod(-1).view(1, -1))
NEXT_MASK = backbone(lambda own, _, __, mask: mask * own[:, ::B].repeat_interleave(B, 1))
TWICE = {"speculators.losses.eager:tv_loss": lambda real, *given: 2 * real(*given)}
CANDIDATES = {f"{CORE}:select_anchors": lambda real, mask, *x: real(F.pad(mask[:, :-1] * mask[:, 1:], (0, B)), *x)}
KNOWN = [
    KnownDifference("labels", "cross-entropy with the data's token, not the verifier's likeliest", backbone(label)),
    KnownDifference("l1-not-tv", "sum |p - q|, twice the total variation", replace_functions(TWICE)),
    KnownDifference(
        "decayed-mean", "divided by the sum of decayed weights, not by the count of rows", replace_functions(MEANS)
    ),
    KnownDifference("prefix", "a block counts up to its first token that is not in the loss", PREFIX),
    KnownDifference("next-mask", "slot k is in the loss if token p + k + 1 is, not p + k", NEXT_MASK),
    KnownDifference("candidates", "an anchor's next token counts, not its block", replace_functions(CANDIDATES)),
    KnownDifference("heads", "Markov and confidence heads are drawn with 0.02 like all else", edit_module(build=heads)),
    *blocks.KNOWN,
]
NAMES = NameMap(
    {"(whole)": None},
    only_port=["verifier_norm"],
    replicated=[Replicated("lm_head", ("lm_head", "verifier_lm_head"))],
    calls={"lm_head#0": "verifier_lm_head", "lm_head#1": "lm_head", "markov_head.markov_w1#1": None},
    arguments={"target_hidden_states": "target_hidden"},
)
UNSEEN = blocks.UNSEEN | {
    "inside _masked_decayed_mean, under known difference decayed-mean": "another mean runs in its place",
    "inside loss_function, under known difference decayed-mean": "another mean runs in its place",
}
DSPARK = Pair(
    "dspark",
    FolderSide(Path(__file__).parent / "recorded" / "dspark", "DeepSpec"),
    PORT,
    [Case("spans", batches((9, 18), (20, 33)), steps=STEPS), Case("full", batches((0, T)), seed=7, steps=2)],
    NAMES,
    draws=[Draw("anchors", "deepspec.modeling.dspark.common:sample_anchor_positions", f"{CORE}:select_anchors")],
    views=[View(names, *[lambda value, _: value.flatten()] * 2) for names in ("mb0.tap*.*", "mb0.call.*_head*")],
    known_differences=KNOWN,
    strict=True,
    tolerances={"lr": Tolerance(Kind.RELATIVE, 1e-14, "DeepSpec multiplies its cosine up")},
    asked=["initialisation"],
    batch_keys=blocks.BATCH,
    unseen=UNSEEN,
    live=original,
    package="deepspec",
    remedy="git clone https://github.com/deepseek-ai/DeepSpec DIR && git -C DIR checkout afdfa7c9",
)
