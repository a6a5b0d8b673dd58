"""Steps ``records`` and ``trained``: what the draft was trained on, and that every forward of it says the same.

A draft has a forward in training, Speculators' own, and the evaluator's, token by token with a cache. On a record they
are the same chain: after its first tokens, the draft goes on alone while the tokens stay the record's.

T tokens of a record, k TTT steps, D the draft's vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor

from ports.check.findings import Finding, fault, left_out, ok
from ports.eagle3.objective import Eagle3Objective
from ports.evaluate.decode import KnownTokens
from ports.evaluate.drafter import drafter_of
from ports.evaluate.verifier import Block, KVCache
from ports.hass.objective import HassObjective
from ports.training.alignment import Alignment
from ports.training.attention import AttentionImplementation, attention_name
from ports.training.data import Batch, RecordDataset, collate, make_sample
from ports.training.held import some_of
from ports.training.loss import LossImplementation
from ports.training.objective import TTTObjective
from ports.training.online import FeatureReader, OnlineDataset
from ports.training.records import check_origin, complete_records, recorded_info
from ports.training.runs import RecordSpec
from ports.training.validation import AS_SERVED
from ports.verifier.loading import load_verifier
from ports.verifier.states import check_states

HELD = 32
"""Records that are computed again, spread over all, unless told otherwise."""

LENGTH = 256
"""Tokens of a record that the forwards are compared on."""

CHAINS = 16
"""Rows of it that a chain is begun after."""

TIMES, UNITS = 4, 8
"""Times what one rounding of the features moves logits, and the least that this may be, in units of float32."""


def records_of(model: Any, directory: Path, device: torch.device) -> RecordDataset:
    """Those of ``directory``, made for this draft's verifier and layers; of ids alone the verifier computes the rest.

    Raises:
        InputError: none there, some gone, or others'.
    """
    config, layers = model.config, getattr(model.config, "eagle_aux_hidden_state_layer_ids", None)
    files, verifier = complete_records(directory, "--records"), config.speculators_config.verifier.name_or_path
    kind, layer, told = config.speculators_model_type, config.transformer_layer_config, recorded_info(files)
    read = files, RecordSpec(kind, layer.hidden_size, layer.vocab_size, layers).widths, layer.vocab_size
    if told is not None and told.algorithm == "ids":
        like = check_origin(files, "ids", verifier, None)
        readers = [FeatureReader(load_verifier(verifier, "auto", device), layers)]
        return OnlineDataset(*read, like=like, readers=readers, **AS_SERVED)
    return RecordDataset(*read, like=check_origin(files, kind, verifier, layers), **AS_SERVED)


def look_at_records(model: Any, dataset: RecordDataset, device: torch.device, held: int = HELD) -> Finding:
    """:func:`ports.verifier.states.check_states` of some of them.

    Raises:
        InputError: states that are not the verifier's.
    """
    if isinstance(dataset, OnlineDataset):
        advice = "speculator records keeps hidden states, and draft does with --keep-records all"
        return left_out("records", "ids alone: what was trained on was computed beside the draft, and is gone", advice)
    verifier = model.config.speculators_config.verifier.name_or_path
    layers = getattr(model.config, "eagle_aux_hidden_state_layer_ids", None)
    said = check_states(verifier, some_of(dataset, layers, verifier, held), device)
    return left_out("records", said, "give records with answers in them") if "NOT" in said else ok("records", said)


def look_at_forwards(model: Any, dataset: RecordDataset, size: int) -> Finding:
    """The training forward's logits against Speculators' own and the evaluator's, at every step, in float32."""
    draft = copy.deepcopy(model).float().cpu()
    records = (dataset.record(place) for place in range(min(len(dataset), HELD)))
    record = max(records, key=lambda each: min(len(each["input_ids"]), LENGTH))
    if len(record["input_ids"]) < size + 2:
        return left_out("trained", f"no record of {size + 2} tokens", "give longer records")
    batch = collate([make_sample(record, LENGTH, Alignment.CHAIN)])
    others = {"the evaluator's": evaluated_logits(draft, batch, size)}
    if isinstance(model, Eagle3DraftModel):
        others["Speculators' own"] = speculators_logits(draft, batch, size)
    return compared("trained", draft, batch, size, others, "what is evaluated is not what was trained")


def compared(
    step: str, draft: Any, batch: Batch, size: int, others: Mapping[str, Sequence[Tensor]], advice: str
) -> Finding:
    """The training forward's logits of a draft in float32 against ``others``, as :func:`chain_logits` has them."""
    own, eps = chain_logits(draft, batch, size), torch.finfo(torch.float32).eps
    draw = torch.rand(batch["features"].shape, generator=torch.Generator().manual_seed(0)) - 0.5
    moved = chain_logits(draft, {**batch, "features": batch["features"] * (1 + 2 * eps * draw)}, size)
    allowed = TIMES * max(UNITS * eps, max(map(_apart, own, moved)))
    apart = {name: [_apart(ours, theirs) for ours, theirs in zip(own, each)] for name, each in others.items()}
    numbers = {"allowed": allowed, "apart": apart}
    for name, found in apart.items():
        for number, distance in enumerate(found, 1):
            if not distance <= allowed:
                figure = f"step {number}: {name} forward {distance:.2g} from training's, at most {allowed:.2g}"
                return fault(step, figure, advice, **numbers)
    worst = max(max(found) for found in apart.values())
    return ok(step, f"{len(apart) + 1} forwards agree to {worst:.1g} of {allowed:.1g}", **numbers)


def _apart(one: Tensor, other: Tensor) -> float:
    """Root mean square of what differs, by that of the logits; where both have numbers."""
    there = ~(one.isnan() | other.isnan())
    return float((one - other)[there].norm() / one[there].norm().clamp_min(1e-30))


def chain_objective(draft: Any, size: int) -> TTTObjective:
    """As drafts are served, in plain torch; ``draft``'s attention is set for it."""
    layer = draft.config.transformer_layer_config
    layer._attn_implementation = attention_name(Alignment.CHAIN, AttentionImplementation.EAGER)
    if isinstance(draft, Eagle3DraftModel):
        return Eagle3Objective(draft, size, Alignment.CHAIN, LossImplementation.EAGER)
    made = HassObjective(draft, size, topk=0, implementation=LossImplementation.EAGER)
    made.alignment = Alignment.CHAIN
    return made


@torch.no_grad()
def chain_logits(draft: Any, batch: Batch, size: int) -> list[Tensor]:
    """[T, D] of every step in training's forward; row q + s of step s belongs to the chain from row q."""
    return [step.logits[0] for step in chain_objective(draft, size).unroll(batch)]


@torch.no_grad()
def speculators_logits(draft: Any, batch: Batch, size: int) -> list[Tensor]:
    """The same of Speculators' own forward, moved to these rows; NaN on those that it has not."""
    config = copy.deepcopy(draft.config)
    config.transformer_layer_config._attn_implementation = "sdpa"
    theirs = Eagle3DraftModel(config)
    theirs.load_state_dict(draft.state_dict(), strict=False)
    said, length = list[Tensor](), batch["input_ids"].shape[1]
    with theirs.lm_head.register_forward_hook(lambda module, args, out: said.append(out[0].detach())):
        theirs.eval()(**speculators_inputs(batch, size))
    rows = [torch.full((length, each.shape[-1]), torch.nan) for each in said]
    for step, each in enumerate(said):
        rows[step][step : length - 1] = each[: length - 1 - step]
    return rows


def speculators_inputs(batch: Batch, ttt_steps: int) -> dict[str, Any]:
    """Keywords of Speculators' forward for one sample, without its last position; its fused losses want Triton."""
    names = {"features": "hidden_states", "input_ids": "input_ids", "target": "verifier_last_hidden_states"}
    return {
        **{theirs: batch[ours][:, :-1] for ours, theirs in names.items()},
        "document_ids": torch.zeros_like(batch["input_ids"][:, :-1]),
        "loss_mask": batch["loss_mask"][:, :-1].bool(),
        "ttt_steps": ttt_steps,
        "loss_config": resolve_loss_config("kl_div", "eager"),
    }


class Forced(KnownTokens):
    """Keeps the logits that it is ``shown``."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__(tokens)
        self.shown: list[Tensor] = []

    def pick(self, logits: Tensor) -> tuple[Tensor, None]:
        """See :class:`ports.evaluate.sampling.Choice`."""
        self.shown.append(logits)
        return super().pick(logits)


@torch.no_grad()
def evaluated_logits(draft: Any, batch: Batch, size: int) -> list[Tensor]:
    """The same of the evaluator's, which reads a prefix and goes on token by token, for some rows; NaN on others."""
    drafter = drafter_of(draft)
    drafter.kept = None  # the tokens are told as the verifier's
    ids, features = batch["input_ids"][0], batch["features"][0]
    length = len(ids)
    starts = torch.linspace(0, length - 1 - size, min(CHAINS, length - size)).long().unique()
    count, most = len(starts), int(starts[-1]) + 1
    places = torch.arange(most).expand(count, most)
    block = Block(
        ids[:most].expand(count, most), features[:most].expand(count, most, -1), places, places <= starts[:, None]
    )
    forced = Forced(ids[starts[:, None] + 1 + torch.arange(size)])
    drafter.propose(KVCache(count, ids.device), block, size, forced)
    rows = [torch.full((length, each.shape[-1]), torch.nan) for each in forced.shown]
    for step, each in enumerate(forced.shown):
        rows[step][starts + step] = each
    return rows
