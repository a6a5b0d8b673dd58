"""A draft before its first step: drawn as the prototypes draw theirs, which a run on recorded weights does not show."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from parity.algorithms import ALGORITHMS
from parity.checks.evidence import Evidence, until_refused
from parity.compare import Subject, compare, compare_value
from parity.environment import deterministic, quietly
from parity.result import Row
from parity.runs.port import FROM_VERIFIER, settings_for
from ports.training.frozen_ends import FrozenEnds

DRAWS = 10
"""Times 1 / entries: how far below the bound the largest entry of a matrix may end. One matrix in 20,000 ends lower."""

ASKED = 4
"""TTT steps that Speculators' training arguments ask for."""


def check_initial(evidence: Evidence) -> list[Row]:
    """Matrices fill torch's own range, norms are one, and what the extension points give is such a draft too."""
    return until_refused(evidence.subject("initial"), _rows(evidence, evidence.subject("initial")))


def _rows(evidence: Evidence, subject: Subject) -> Iterator[Row]:
    with deterministic(), quietly():
        draft = ALGORITHMS[evidence.case.algorithm].train.build(settings_for(evidence.case, Path("nowhere")))
    yield from _drawn(subject, "", draft)
    if isinstance(draft, FrozenEnds):
        yield from _extension_points(evidence, subject, draft)


def _drawn(subject: Subject, prefix: str, draft: Any) -> Iterator[Row]:
    for name, value in draft.named_parameters():
        if value.requires_grad and name not in FROM_VERIFIER:
            yield _norm(subject, prefix + name, value) if value.dim() == 1 else _matrix(subject, prefix + name, value)


def _norm(subject: Subject, name: str, weight: Tensor) -> Row:
    return compare_value(subject, "start", name, [1.0], torch.unique(weight.detach()).tolist())


def _matrix(subject: Subject, name: str, weight: Tensor) -> Row:
    """The largest entry over torch's bound for a layer of ``weight.shape[1]`` inputs: just below one."""
    largest = float(weight.detach().abs().max()) * weight.shape[1] ** 0.5
    short = DRAWS / weight.numel()
    passed = 1 - short <= largest <= 1 + 1e-6
    detail = "" if passed else f"largest entry {largest:.3g} / sqrt(inputs), expected {1 - short:.3g} to 1"
    return subject.row("start", name, abs(1 - largest), short, passed, detail)


def _extension_points(evidence: Evidence, subject: Subject, draft: FrozenEnds) -> Iterator[Row]:
    """Speculators' trainer asks the class, or a draft, for a draft and for the keywords of its forward."""
    expected = ({"ttt_steps": ASKED}, {"ttt_steps": ASKED})
    owners: dict[str, Any] = {"class": type(draft), "draft": draft}
    for name, owner in owners.items():
        found = _asked(partial(owner.get_trainer_kwargs, ttt_steps=ASKED, lr=1.0))
        yield compare_value(subject, "keywords", f"of the {name}", expected, found)
    layer, path = copy.deepcopy(draft.config.transformer_layer_config), str(evidence.case.verifier.resolve())
    with deterministic(), quietly():
        made = _asked(
            lambda: type(draft).from_training_args(layer, verifier_name_or_path=path, ttt_steps=ASKED, lr=1.0)
        )
    yield compare_value(
        subject, "extension", "made", type(draft).__name__, made if isinstance(made, str) else type(made).__name__
    )
    if not isinstance(made, FrozenEnds):
        return
    attached = made.config.speculators_config
    said = [attached.algorithm, attached.verifier.name_or_path, attached.proposal_methods[0].speculative_tokens]
    yield compare_value(subject, "extension", "config", [evidence.case.algorithm, path, ASKED], said)
    for name in FROM_VERIFIER:
        own, right = made.get_parameter(name).detach(), draft.get_parameter(name).detach()
        yield compare(subject, "weights", f"extension: {name}", right, own, evidence.tolerance("weights"))
    yield from _drawn(subject, "extension: ", made)
    yield from _unfit_verifiers(evidence, subject, draft)
    yield from _too_many_likeliest(evidence, subject, draft.config.transformer_layer_config.vocab_size)


def _too_many_likeliest(evidence: Evidence, subject: Subject, vocabulary: int) -> Iterator[Row]:
    """The logged cross-entropy covers all tokens at most."""
    for more in (0, 1):
        settings = settings_for(evidence.case, Path("nowhere"), topk=vocabulary + more)
        with quietly():
            found = _asked(partial(ALGORITHMS[evidence.case.algorithm].train.build, settings))
        refused = isinstance(found, str) and f"--topk: found {vocabulary + more}" in found
        yield compare_value(subject, "topk", f"{more} more than tokens", bool(more), refused)


def _unfit_verifiers(evidence: Evidence, subject: Subject, draft: FrozenEnds) -> Iterator[Row]:
    """A verifier whose tables are not the draft's is refused by the table; a tied one has a single table for both."""
    width = draft.config.transformer_layer_config.hidden_size
    table, other = torch.ones(draft.embed_tokens.weight.shape), torch.ones(3, width)
    verifiers: dict[str, tuple[dict[str, Tensor], str]] = {
        "a head alone": ({"lm_head.weight": table}, "embed_tokens.weight: found missing"),
        "of another size": ({"model.embed_tokens.weight": other}, f"embed_tokens.weight: found shape (3, {width})"),
        "too large": (
            {"model.embed_tokens.weight": torch.cat([table, table])},
            f"embed_tokens.weight: found shape ({2 * len(table)}, {width})",
        ),
        "another head": (
            {"model.embed_tokens.weight": table, "lm_head.weight": other},
            f"lm_head.weight: found shape (3, {width})",
        ),
        "tied": ({"model.embed_tokens.weight": table}, "1.0"),
    }
    alone: Any = type(draft)(copy.deepcopy(draft.config))
    for name, attached in {"without a name": alone.config.speculators_config, "none": None}.items():
        if attached is not None:
            attached.verifier.name_or_path = None
        alone.config.speculators_config = attached
        untouched = [bool(alone.get_parameter(each).isnan().all()) for each in FROM_VERIFIER]
        yield compare_value(
            subject, "verifier", name, (None, [True, True]), (_asked(alone.load_verifier_weights), untouched)
        )
    fresh: Any = type(draft)(copy.deepcopy(draft.config))
    for name, (tensors, expected) in verifiers.items():
        with tempfile.TemporaryDirectory() as folder, quietly():
            shutil.copy(evidence.case.verifier / "config.json", folder)
            save_file(tensors, Path(folder) / "model.safetensors")
            fresh.config.speculators_config.verifier.name_or_path = folder
            refused = _asked(fresh.load_verifier_weights)
            said: str = refused or f"{folder}: {float(fresh.lm_head.weight.mean())}"
        found = said.partition(f"{folder}: ")[2].partition(", expected")[0]
        yield compare_value(subject, "verifier", name, expected, found)


def _asked(ask: Callable[[], Any]) -> Any:
    """The answer, or the exception's name and text."""
    try:
        return ask()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
