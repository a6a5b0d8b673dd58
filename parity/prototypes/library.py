"""Ports against Speculators itself: its own Eagle3 forward, and its extension points for a model it does not know."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from speculators import SpeculatorModel
from speculators.models.eagle3 import Eagle3DraftModel
from speculators.utils.loading import load_model_layers
from torch import Tensor, nn
from transformers import AutoConfig

from parity import fixtures
from parity.compare import RowKey, compare, compare_groups, compare_named, compare_value
from parity.environment import deterministic, quietly
from parity.pair import Options
from parity.prototypes.case import find_cases
from parity.prototypes.port import ALGORITHMS, settings_for
from parity.prototypes.recorded import FROM_VERIFIER
from parity.tolerances import EXACT, by_dtype
from parity.trace_pair import TracePair
from parity.verdict import Against, Report, Row
from ports.check.trained import speculators_inputs
from ports.eagle3.objective import Eagle3Objective
from ports.hass.model import HassDraftModel
from ports.training.alignment import Alignment
from ports.training.attention import attention_name
from ports.training.data import Batch, collate

ASKED = 4
"""TTT steps that Speculators' training arguments ask for."""


def check_chain(evidence: TracePair) -> list[Row]:
    """Logits at every TTT step, loss and gradients of a sample, with Speculators' mask and slice rules.

    Speculators cannot unroll a sample to as many steps as it has tokens, so a longer one is taken. It packs one
    document in a row and drops the last position; its step-s logits at index q are the port's at position p = q + s.
    Drafts of two layers, which the prototype cannot train, are compared too.
    """
    settings = settings_for(evidence.case, Path("nowhere"), noise=False, ttt_alignment=Alignment.CHAIN)
    dataset = ALGORITHMS["eagle3"].train.build_dataset(settings, evidence.left.draft.config)
    batches = (collate([dataset.sample(index)]) for index in range(len(dataset)))
    batch = next(batch for batch in batches if batch["input_ids"].shape[1] > evidence.case.ttt_steps)
    subject, rows = evidence.subject("chain", Against.SPECULATORS), []
    for layers, name in enumerate(("one layer", "two layers"), 1):
        theirs = _speculators_draft(evidence, layers)
        config = copy.deepcopy(theirs.config)
        config.transformer_layer_config._attn_implementation = attention_name(Alignment.CHAIN)
        ours = Eagle3DraftModel(config)
        ours.load_state_dict(theirs.state_dict(), strict=False)
        rows += _compare(evidence, subject, name, theirs, ours, batch)
    return rows


def _compare(
    evidence: TracePair, subject: RowKey, name: str, theirs: Eagle3DraftModel, ours: Eagle3DraftModel, batch: Batch
) -> list[Row]:
    """Of the gradients those of everything that both train."""
    k, rows = evidence.case.ttt_steps, []
    expected_logits, expected_loss = speculators_forward(theirs, batch, k)
    outcome = Eagle3Objective(ours, k, Alignment.CHAIN)(batch)
    for s, (expected, step) in enumerate(zip(expected_logits, outcome.steps)):
        length = expected.shape[1] - s
        pair = expected[:, :length], step.logits.detach()[:, s : s + length]
        rows.append(compare(subject, "chain_logits", f"{name}.step{s}", *pair, by_dtype("out", "float32")))
    losses = expected_loss.detach().reshape(1), outcome.loss.detach().reshape(1)
    rows.append(compare_named(subject, "chain_loss", name, *losses, by_dtype("loss", "float32")))
    expected_loss.backward()
    outcome.backward_loss.backward()
    expected_grads, grads = (
        {f"{name}: {each}": value.grad for each, value in draft.named_parameters() if value.grad is not None}
        for draft in (theirs, ours)
    )
    return rows + compare_groups(subject, "grad", expected_grads, grads, by_dtype("grad", "float32"))


def speculators_forward(draft: Eagle3DraftModel, batch: Batch, ttt_steps: int) -> tuple[list[Tensor], Tensor]:
    """Logits [1, T - 1, D] of every step and the loss of Speculators' own forward on one sample."""
    logits: list[Tensor] = []
    with draft.lm_head.register_forward_hook(lambda module, args, out: logits.append(out.detach())):
        _, loss, _ = draft(**speculators_inputs(batch, ttt_steps))
    return logits, loss


def _speculators_draft(evidence: TracePair, layers: int) -> Eagle3DraftModel:
    """Speculators' model on the run's initial weights; the files hold post-norm targets, so its norm is an identity."""
    config = copy.deepcopy(evidence.left.draft.config)
    config.transformer_layer_config._attn_implementation = "sdpa"  # eager sees wrong keys in Speculators 0.8.1
    config.transformer_layer_config.num_hidden_layers = layers
    with deterministic():
        draft = Eagle3DraftModel(config)
    draft.load_state_dict({**evidence.left.draft.state_dict(), **evidence.expected.group("init.")}, strict=False)
    draft.verifier_norm = nn.Identity()
    return draft.eval()


def initial(options: Options) -> Report:
    """A draft made from Speculators' training arguments is registered, as asked for, and on its verifier's tables.

    It depends on no case; the verifier is that of the first HASS case in ``options.recordings``, or of those shipped.
    """
    report, cases = Report(), find_cases(options.recordings or fixtures.RECORDINGS, "hass")
    if not cases:
        return report
    subject, path = RowKey("initial", "hass_initial", "port", Against.SPECULATORS), str(cases[0].verifier.resolve())
    with deterministic(), quietly():
        layer = AutoConfig.from_pretrained(path)
        made: Any = HassDraftModel.from_training_args(layer, verifier_name_or_path=path, ttt_steps=ASKED, lr=1.0)
        tables = load_model_layers(list(FROM_VERIFIER), path)
    keywords, attached = made.get_trainer_kwargs(ttt_steps=ASKED, lr=1.0), made.config.speculators_config
    said = [attached.algorithm, attached.verifier.name_or_path, attached.proposal_methods[0].speculative_tokens]
    found = {each: made.get_parameter(each).detach() for each in FROM_VERIFIER}
    tables = {each: tables.get(each, tables["embed_tokens.weight"]).to(found[each].dtype) for each in found}  # tied
    report.rows += [
        compare_value(subject, "extension", "registered", "HassDraftModel", SpeculatorModel.registry["hass"].__name__),
        compare_value(subject, "extension", "keywords", [ASKED] * 2, [each.get("ttt_steps") for each in keywords]),
        compare_value(subject, "extension", "config", ["hass", path, ASKED], said),
        *compare_groups(subject, "weights", tables, found, EXACT),
    ]
    return report
