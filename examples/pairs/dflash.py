"""SpecForge's DFlash against ``speculators.models.dflash``: a port that exists, and neither side is this project's.

    parity run examples/pairs/dflash.py:DFLASH [--original DIR]
    parity record examples/pairs/dflash.py:DFLASH --original DIR --output FOLDER

``DIR`` is a checkout of sgl-project/SpecForge. Without one the original is what was recorded of it. Both attend by SDPA
and dense masks, which both offer: FlexAttention has no backward on a CPU. Shapes: N blocks of B slots in T positions.
"""

from __future__ import annotations

import ports  # noqa: F401  # isort: skip  (a torchaudio of another build must not break transformers)

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import blocks
import torch
from blocks import CORE, RATE, STEPS, WARMUP, B, N, T
from speculators import SpeculatorsConfig, VerifierConfig
from speculators.losses import dflash_loss_decay, dpace_loss_decay, eager
from speculators.models.dflash import DFlashDraftModel, DFlashSpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from torch import Tensor, nn
from torch.nn import functional as F
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
    replace_functions,
    tap,
)

LOSSES = "speculators.losses.utils"
BACKBONE = f"{CORE}:DFlashDraftModel._backbone_forward"
FAMILY = "specforge.algorithms.common.dflash_family_model"
V, H, GAMMA = 23, 12, 7.0
SIZES = {"vocab_size": V, "hidden_size": H, "intermediate_size": 20, "num_hidden_layers": 2, "head_dim": 6}
HEADS = {"num_attention_heads": 3, "num_key_value_heads": 1, "attn_implementation": "sdpa"}


def ce(logits: Tensor, targets: Tensor) -> Tensor:
    tap("labels", targets.argmax(-1))
    return eager.ce_loss(logits, targets)


def batches(*spans: tuple[int, int], weight: str) -> list[dict[str, Any]]:
    own = {"loss_config": {"ce": (ce, 1.0)}, "per_position_loss_weight": weight}
    return blocks.sequences(spans, H, V - 1, gamma=GAMMA, **own)


def original(_: Path) -> Side:
    """SpecForge's model, losses and optimizer, in one process and with a dense mask."""
    from specforge.algorithms.common.dflash_family_model import OnlineDFlashModel
    from specforge.modeling.draft.dflash import DFlashDraftModel as Draft
    from specforge.optimizer import BF16Optimizer

    def build() -> Any:
        own = {"mask_token_id": V - 1, "target_layer_ids": [0, 1]}
        draft = Draft(Qwen3Config(**SIZES, **HEADS, block_size=B, num_target_layers=8, dflash_config=own))
        head, embedding = (kind.requires_grad_(False) for kind in (nn.Linear(H, V, bias=False), nn.Embedding(V, H)))
        for part in (head, embedding):
            part.weight.normal_()
        return OnlineDFlashModel(draft, head, embedding, V - 1, B, "sdpa", N, GAMMA, objective_chunk_blocks=0)

    def loss(model: Any, batch: dict[str, Any]) -> Tensor:
        model.loss_type = batch["per_position_loss_weight"].replace("fixed-exp-decay", "dflash")
        return model(batch["input_ids"], batch["hidden_states"], batch["loss_mask"])[0]

    optimizer = partial(BF16Optimizer, lr=RATE, total_steps=STEPS, warmup_ratio=WARMUP / STEPS)
    seen = {
        f"{FAMILY}.OnlineDFlashModel._dflash_objective_chunk_terms": {"target_ids": "labels", "weight_mask": "mask"}
    }
    return Side(build, loss, optimizer, taps=seen, clip=Clip("norm", 0.5), name="SpecForge")


def build() -> Any:
    layer = {"transformer_layer_config": Qwen3Config(**SIZES, **HEADS), "aux_hidden_state_layer_ids": [0, 1]}
    serve = {"proposal_methods": [GreedyTokenProposalConfig(speculative_tokens=B - 1)]}
    verifier = VerifierConfig(name_or_path=None, architectures=[])
    serve |= {"algorithm": "dflash", "default_proposal_method": "greedy", "verifier": verifier}
    layer["speculators_config"] = SpeculatorsConfig(**serve)
    return DFlashDraftModel(DFlashSpeculatorConfig(draft_vocab_size=V, block_size=B, mask_token_id=V - 1, **layer))


PORT = Side(
    build,
    optimizer=lambda parameters: AdamW(parameters, RATE),
    schedule=lambda optimizer: get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS),
    taps={"speculators.models.dflash.metrics.compute_metrics": {"loss_mask": "mask"}},
    step=Clip("norm", 1.0),
    name="Speculators",
)


def backbone(change: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """Other targets [1, N * B, V] and mask [1, N * B], of Speculators' own, the tokens and the slots' places."""

    def run(real: Any, model: Any, x: Tensor, ids: Tensor, *rest: Any, **named: Any) -> Any:
        hidden, logits, targets, mask, places = real(model, x, ids, *rest, **named)
        return hidden, logits, *change(targets, mask, ids, places), places

    return replace_functions({BACKBONE: run})


def divided(decay: Any, divisor: Callable[..., Any]) -> Callable[..., Any]:
    """The losses that are weighed by ``decay`` are divided by another number than the count of rows."""

    def run(real: Any, *given: Tensor, decay_fn: Any, **named: Any) -> Tensor:
        loss, (_, _, mask, slots) = real(*given, decay_fn=decay_fn, **named), given
        return loss * (mask.sum() + 1e-5) / divisor(mask, slots) if decay_fn.func is decay else loss

    return replace_functions({f"{LOSSES}:loss_function": run})


def both(mask: Tensor) -> Tensor:
    """[1, T - 1]: is a token in the loss, and the next?"""
    return mask[:, :-1] * mask[:, 1:]


def width(real: Any, model: Any, x: Tensor, ids: Tensor, mask: Tensor, *rest: Any, max_anchors: int, **y: Any) -> Any:
    return real(model, x, ids, mask, *rest, max_anchors=min(max_anchors, int(both(mask).sum())), **y)


def overhang(side: Side) -> Side:
    """A forward asks for the slots' positions first, which may pass the end, and then for what is gathered there."""
    last = cycle((T + B, T - 1))

    def inside(targets: Tensor, mask: Tensor, _: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        return targets, mask * (places[::B, None] + torch.arange(B) < T).view(1, -1)

    def slots(real: Any, *given: Any) -> Tensor:
        return real(*given).clamp(max=next(last))

    return backbone(inside)(replace_functions({f"{CORE}:get_base_indices_for_anchored_blocks": slots})(side))


def label(targets: Tensor, mask: Tensor, ids: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    return F.one_hot(ids[:, places], V).float(), mask


MEAN = divided(dflash_loss_decay, lambda mask, slots: (mask * dflash_loss_decay(slots, GAMMA)).sum())
SUM = divided(dpace_loss_decay, lambda *_: 1)
CANDIDATES = {f"{CORE}:select_anchors": lambda real, mask, *x: real(F.pad(both(mask), (0, B)), *x)}
KNOWN = [
    KnownDifference("labels", "cross-entropy with the data's token, not the verifier's likeliest", backbone(label)),
    KnownDifference("decayed-mean", "divided by the sum of decayed weights, not by the count of rows", MEAN),
    KnownDifference("dpace-sum", "D-PACE is a sum per sequence, not a mean over rows", SUM),
    KnownDifference("candidates", "an anchor's next token counts, not its block", replace_functions(CANDIDATES)),
    KnownDifference(
        "width", "as many blocks as candidates if fewer", replace_functions({BACKBONE: width}), raises="expanded size"
    ),
    KnownDifference("overhang", "a block may pass the end of the sequence", overhang, raises="IndexError"),
    KnownDifference("clip", "gradients clipped to 0.5, not 1", lambda x: replace(x, step=Clip("norm", 0.5))),
    *blocks.KNOWN,
]
NAMES = NameMap(
    {"(whole)": None, "draft_model": None}
    | {f"draft_model.{name}": name for name in ("layers", "norm", "fc", "hidden_norm", "rotary_emb")},
    only_port=["verifier_norm", "verifier_lm_head"],
    replicated=[Replicated("lm_head", ("lm_head", "verifier_lm_head"))],
)
UNSEEN = blocks.UNSEEN | {
    "inside the port's step, under known difference clip": "a step that clips to 0.5 runs in its place",
    "target shifted by one": "under known difference labels nothing reads the verifier's states",
}
DFLASH = Pair(
    "dflash",
    FolderSide(Path(__file__).parent / "recorded" / "dflash", "SpecForge"),
    PORT,
    [
        Case("spans", batches((9, 18), (20, 33), weight="fixed-exp-decay"), steps=STEPS),
        Case("end", batches((31, 34), (35, T), weight="dpace"), steps=2),
    ],
    NAMES,
    draws=[Draw("anchors", f"{FAMILY}:OnlineDFlashModel._sample_anchor_positions", f"{CORE}:select_anchors")],
    views=[View("mb0.tap*.*", *[lambda value, _: value.flatten()] * 2)],
    known_differences=KNOWN,
    strict=True,
    tolerances={"lr": Tolerance(Kind.RELATIVE, 1e-14, "SpecForge multiplies its cosine up")},
    asked=["initialisation"],
    batch_keys=blocks.BATCH,
    unseen=UNSEEN,
    live=original,
    package="specforge",
    remedy="git clone https://github.com/sgl-project/SpecForge DIR && git -C DIR checkout a6b6b023",
)
