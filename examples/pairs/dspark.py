"""DeepSpec's DSpark against ``speculators.models.dspark``: a port that exists, and neither side is this project's.

    parity run examples/pairs/dspark.py:DSPARK [--original DIR]
    parity record examples/pairs/dspark.py:DSPARK --original DIR --output FOLDER

``DIR`` is a checkout of deepseek-ai/DeepSpec. Without one the original is what was recorded of it. Both attend by SDPA
and dense masks, which both offer: FlexAttention has no backward on a CPU. Shapes: N blocks of B slots in T positions.
"""

from __future__ import annotations

import ports  # noqa: F401  # isort: skip  (a torchaudio of another build must not break transformers)

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from speculators import SpeculatorsConfig, VerifierConfig
from speculators.losses import eager
from speculators.models.dspark import DSparkDraftModel, DSparkSpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_mask
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import Qwen3Config, get_linear_schedule_with_warmup

from parity import (
    Case,
    Cause,
    Clip,
    Copied,
    Draw,
    FolderSide,
    Kind,
    NameMap,
    Pair,
    Side,
    Tolerance,
    View,
    changed,
    instead,
    tap,
)
from parity.errors import InputError

REMEDY = "git clone https://github.com/deepseek-ai/DeepSpec DIR && git -C DIR checkout afdfa7c9"
BEYOND = "DeepSpec's candidates, drawn anew, lead a block of Speculators' out of the sequence"
CORE, METRICS = "speculators.models.dflash.core", "speculators.models.dspark.metrics"
T, B, N, STEPS, WARMUP, RATE, GAMMA = 37, 4, 6, 8, 2, 6e-4, 4.0
SIZES = {"vocab_size": 53, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "sdpa"}
SHARED = {"block_size": B, "mask_token_id": 52, "markov_rank": 8, "markov_head_type": "vanilla"}
OWN = {"target_layer_ids": [0, 1], "num_anchors": N, "enable_confidence_head": True}
TERMS = "ce", "l1", "confidence"


def batches(*spans: tuple[int, int]) -> list[dict[str, Tensor]]:
    """Two of one sequence each; the tokens of the spans are in the loss."""
    draw, mask = torch.Generator().manual_seed(0), torch.zeros(1, T, dtype=torch.long)
    for begin, end in spans:
        mask[:, begin:end] = 1
    features = [[torch.randn(1, T, size, generator=draw) for size in (64, 32)] for _ in range(2)]
    return [{"ids": torch.randint(52, (1, T), generator=draw), "mask": mask, "x": x, "last": y} for x, y in features]


def with_verifier(model: Any) -> Any:
    """The embedding and the head that both take over from their verifier; DeepSpec's features have passed its norm."""
    draw = torch.Generator().manual_seed(1)
    for part in (model.embed_tokens, model.lm_head):
        part.weight.data.normal_(generator=draw)
    if hasattr(model, "verifier_lm_head"):
        model.verifier_lm_head.weight.data.copy_(model.lm_head.weight)
        model.verifier_norm.forward = lambda states: states
    return model


def clipped(module: nn.Module, optimizer: Any) -> None:
    """As both trainers step."""
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()


def original(root: Path) -> Side:
    """DeepSpec's model, loss and optimizer, in one process and with a dense mask."""
    if not (root / "deepspec").is_dir():
        raise InputError(root, "--original", "no folder `deepspec`", f"a checkout: {REMEDY}")
    sys.path.insert(0, str(root))
    words = "modeling.dspark.qwen3", "modeling.dspark.loss", "utils.optim"
    models, losses, optim = (importlib.import_module(f"deepspec.{word}") for word in words)

    def build() -> Any:
        config = Qwen3Config(**SIZES, **HEADS, **SHARED, **OWN, confidence_head_with_markov=True)
        model = with_verifier(models.Qwen3DSparkModel(config))
        model.set_embedding_head_trainable(False)
        return model

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        out = model(batch["ids"], batch["x"], batch["mask"], batch["last"])
        out.draft_logits, out.confidence_pred = tap("logits", out.draft_logits), tap("confidence", out.confidence_pred)
        tap("labels", out.target_ids), tap("mask", out.eval_mask.long())
        terms, _ = losses._collect_local_terms(outputs=out, loss_decay_gamma=GAMMA, l1_loss_alpha=0.9)
        for name in TERMS:
            tap(f"loss.{name}", (terms[f"{name}_loss_num"] / terms[f"{name}_loss_den"]).detach())
        weights = {"ce_loss_alpha": 0.1, "l1_loss_alpha": 0.9, "confidence_head_alpha": 1.0}
        return losses.compute_dspark_loss(outputs=out, loss_decay_gamma=GAMMA, **weights)

    def optimizer(model: Any) -> Any:
        return optim.BF16Optimizer(model, RATE, STEPS, WARMUP / STEPS)

    here = {
        "deepspec.modeling.dspark.common:create_block_mask": lambda _, *given, **named: create_mask(*given, **named),
        "torch.distributed:get_world_size": lambda _: 1,
    }
    return instead(here)(Side(build, loss, optimizer, step=clipped, name="DeepSpec"))


def build() -> Any:
    layer = {"transformer_layer_config": Qwen3Config(**SIZES, **HEADS), "aux_hidden_state_layer_ids": [0, 1]}
    verifier = VerifierConfig(name_or_path=None, architectures=[])
    proposals = [GreedyTokenProposalConfig(speculative_tokens=B)]
    served = {"proposal_methods": proposals, "default_proposal_method": "greedy", "verifier": verifier}
    layer["speculators_config"] = SpeculatorsConfig(algorithm="dspark", **served)
    config = DSparkSpeculatorConfig(draft_vocab_size=53, **layer, **SHARED)
    return with_verifier(DSparkDraftModel(config))


def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    terms, documents = {"ce": (ce, 0.1), "l1": (l1, 0.9)}, torch.zeros_like(batch["ids"])
    given = batch["x"], batch["ids"], batch["mask"], batch["last"], documents
    _, found, said = model(*given, loss_config=terms, tv_loss_fn=eager.tv_loss, gamma=GAMMA, max_anchors=N)
    for name in TERMS:
        tap(f"loss.{name}", said[f"{name}_loss_sum"])
    return found


def l1(logits: Tensor, targets: Tensor) -> Tensor:
    return eager.tv_loss(logits, targets)


def ce(logits: Tensor, targets: Tensor) -> Tensor:
    labels = tap("labels", getattr(targets, "labels", targets.argmax(-1)))
    return F.cross_entropy(logits[0], labels[0], reduction="none")[None]


PORT = Side(
    build,
    loss,
    lambda parameters: AdamW(parameters, RATE),
    lambda optimizer: get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS),
    clipped,
    load=lambda folder: with_verifier(DSparkDraftModel.from_pretrained(folder)).train(),
    taps={f"{METRICS}.compute_metrics": {"logits": "logits", "confidence_logits": "confidence", "loss_mask": "mask"}},
    clip=Clip("norm", 1.0),
    name="Speculators",
)


def backbone(change: Callable[..., Tensor]) -> Any:
    """Another mask [1, N * B], of Speculators' own, its targets, and the ids and mask of the slots' next tokens."""

    def run(real: Any, model: Any, x: Tensor, ids: Tensor, mask: Tensor, *rest: Any, **named: Any) -> Any:
        *states, targets, own, places = real(model, x, ids, mask, *rest, **named)
        following = (F.pad(one, (0, B))[:, places + 1] for one in (ids, mask))
        return *states, targets, change(own, targets, *following), places

    return instead({f"{CORE}:DFlashDraftModel._backbone_forward": run})


def label(own: Tensor, targets: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    targets.labels = ids
    return own


def mean(values: Tensor, mask: Tensor, slots: Tensor, *_: Any) -> Tensor:
    weights = mask * torch.exp(-slots / GAMMA)
    return (values * weights).sum() / (weights.sum() + 1e-6)


def rate(step: int) -> float:
    """Of DeepSpec's warm-up and cosine, over the peak rate."""
    turns = [1 + math.cos(math.pi * n / (STEPS - WARMUP)) for n in (step - WARMUP, 1)]
    return (step + 1) / WARMUP if step < WARMUP else turns[0] / turns[1]


def heads(model: Any) -> None:
    for value in (*model.markov_head.parameters(), *model.confidence_head.parameters()):
        nn.init.normal_(value, std=0.02 * (value.dim() > 1))


def frozen(model: Any) -> None:
    for part in (model.embed_tokens, model.lm_head, model.verifier_lm_head, model.verifier_norm):
        part.requires_grad_(False)


def sdpa(model: Any) -> None:
    model.config.transformer_layer_config._attn_implementation, model._create_mask_fn = "sdpa", create_mask


def candidates(real: Any, mask: Tensor, *sizes: int) -> Any:
    return real(F.pad(mask[:, :-1] * mask[:, 1:], (0, B)), *sizes)


MEANS = {
    "speculators.losses.utils:loss_function": lambda _, x, y, *rest, loss_fn, **__: mean(loss_fn(x, y), *rest),
    f"{METRICS}:_masked_decayed_mean": lambda _, *given: mean(*given),
}
TWICE = {f"{__name__}:l1": lambda real, *given: 2 * real(*given)}
PREFIX = backbone(lambda own, *_: own.view(N, B).cumprod(-1).view(1, -1))
NEXT_MASK = backbone(lambda own, _, __, mask: mask * own[:, ::B].repeat_interleave(B, 1))
CAUSES = [
    Cause("labels", "cross-entropy with the data's token, not the verifier's likeliest", backbone(label)),
    Cause("l1-not-tv", "sum |p - q|, twice the total variation", instead(TWICE)),
    Cause("decayed-mean", "divided by the sum of decayed weights, not by the count of rows", instead(MEANS)),
    Cause("prefix", "a block counts up to its first token that is not in the loss", PREFIX),
    Cause("next-mask", "slot k is in the loss if token p + k + 1 is, not p + k", NEXT_MASK),
    Cause(
        "candidates", "an anchor's next token counts, not its block", instead({f"{CORE}:select_anchors": candidates})
    ),
    Cause("schedule", "from lr / 2, once past the peak", lambda x: replace(x, schedule=lambda y: LambdaLR(y, rate))),
    Cause("decay", "no weight decay", lambda x: replace(x, optimizer=lambda y: AdamW(y, RATE, weight_decay=0.0))),
    Cause("heads", "Markov and confidence heads are drawn with 0.02 like all else", changed(build=heads)),
    Cause("frozen", "what is frozen stays so when opened again", changed(load=frozen)),
    Cause("attention", "opens with the attention that it was trained with", changed(load=sdpa)),
]
NAMES = NameMap(
    {"(whole)": None},
    only_port=["verifier_norm"],
    copied=[Copied("lm_head", ("lm_head", "verifier_lm_head"))],
    calls={"lm_head#0": "verifier_lm_head", "lm_head#1": "lm_head", "markov_head.markov_w1#1": None},
    arguments={"target_hidden_states": "target_hidden"},
)
DRAWN = "deepspec.modeling.dspark.common:sample_anchor_positions", "speculators.models.dflash.utils:select_anchors"
VIEWS = [
    View("mb0.tap*.*", original=lambda value, _: value.flatten(1, 2) if value.dim() > 2 else value),
    View("mb0.call.*_head*", *[lambda value, _: value.reshape(-1, value.shape[-1])] * 2),
]
DSPARK = Pair(
    "dspark",
    FolderSide(Path(__file__).parent / "recorded" / "dspark", "DeepSpec"),
    PORT,
    # 7: no anchor beyond 32, from where a block of Speculators' leads out of the sequence
    [Case("spans", batches((9, 18), (20, 33)), steps=STEPS), Case("full", batches((0, T)), seed=7, steps=2)],
    NAMES,
    draws=[Draw("anchors", *DRAWN, given=lambda drawn: drawn[0])],
    views=VIEWS,
    causes=CAUSES,
    strict=True,
    tolerances={"lr": Tolerance(Kind.RELATIVE, 1e-14, None, "DeepSpec multiplies its cosine up")},
    asked=["initialisation"],
    not_applicable={"resume": lambda evidence: BEYOND if evidence.found.case == "full" else None},
    live=original,
    remedy=REMEDY,
)
