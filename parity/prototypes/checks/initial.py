"""The port's model at the points where Speculators' own trainer takes hold of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from speculators import SpeculatorModel
from speculators.utils.loading import load_model_layers

from parity.compare import Subject, compare_groups, compare_value
from parity.environment import deterministic, quietly
from parity.evidence import Evidence
from parity.prototypes.port import FROM_VERIFIER
from parity.verdict import Against, Row

ASKED = 4
"""TTT steps that Speculators' training arguments ask for."""


def check_initial(evidence: Evidence) -> list[Row]:
    """A draft made from Speculators' training arguments is registered, as asked for, and on its verifier's tables."""
    return list(_rows(evidence, evidence.subject("initial", Against.LIBRARY)))


def _rows(evidence: Evidence, subject: Subject) -> Iterator[Row]:
    own, path = type(evidence.live.draft), str(evidence.case.verifier.resolve())
    registered = SpeculatorModel.registry[evidence.case.algorithm]
    yield compare_value(subject, "extension", "registered", own.__name__, registered.__name__)
    keywords = own.get_trainer_kwargs(ttt_steps=ASKED, lr=1.0)
    yield compare_value(subject, "extension", "keywords", [ASKED] * 2, [each.get("ttt_steps") for each in keywords])
    layer = copy.deepcopy(evidence.live.draft.config.transformer_layer_config)
    with deterministic(), quietly():
        made: Any = own.from_training_args(layer, verifier_name_or_path=path, ttt_steps=ASKED, lr=1.0)
        tables = load_model_layers(list(FROM_VERIFIER), path)
    attached = made.config.speculators_config
    said = [attached.algorithm, attached.verifier.name_or_path, attached.proposal_methods[0].speculative_tokens]
    yield compare_value(subject, "extension", "config", [evidence.case.algorithm, path, ASKED], said)
    found = {name: made.get_parameter(name).detach() for name in FROM_VERIFIER}
    tables = {name: tables.get(name, tables["embed_tokens.weight"]).to(found[name].dtype) for name in found}  # tied
    yield from compare_groups(subject, "weights", tables, found, evidence.tolerance("weights"))
