"""Run the other originals on recorded cases and study each against what it differs from."""

from __future__ import annotations

import importlib
import pkgutil
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import speculators.models as speculators_models
from speculators import SpeculatorModel
from torch import Tensor

from parity.compare import Subject
from parity.environment import deterministic
from parity.errors import InputError
from parity.prototypes.case import Case, read_case
from parity.prototypes.explain import eagle, features, hass, speculators
from parity.prototypes.explain.cases import with_every_row_in_the_loss
from parity.prototypes.explain.eagle import Batch
from parity.prototypes.explain.prototype import prototype_facts
from parity.prototypes.explain.study import Cause, Study, Tensors, study
from parity.prototypes.others import OTHERS, run_other
from parity.prototypes.others.batch import first_files, first_samples, padded
from parity.prototypes.recorded import load_recorded
from parity.prototypes.reference.data import load_sample, make_batch
from parity.prototypes.reference.loop import prepare


def run_studies(
    checkouts: Mapping[str, Path], recordings: Path, say: Callable[[str], None] = lambda _: None
) -> list[Study]:
    """Every study that the given checkouts, by the originals' names, allow."""
    if not checkouts:
        raise InputError("command line", "--eagle, --hass", "neither", "a checkout of at least one")
    studies = []
    for name, root in checkouts.items():
        for case_name, function in STUDIES[name]:
            say(f"{name}, {case_name}")
            with deterministic():
                studies.append(function(root, read_case(recordings / case_name)))
    return studies


def speculators_algorithms() -> list[str]:
    """What Speculators' own registry offers: the ports' names are taken off."""
    for module in pkgutil.iter_modules(speculators_models.__path__):
        importlib.import_module(f"{speculators_models.__name__}.{module.name}")
    registry: dict[str, type] = SpeculatorModel.registry or {}
    return sorted(name for name, model in registry.items() if model.__module__.startswith("speculators."))


def eagle_and_prototype(root: Path, case: Case) -> Study:
    """EAGLE's script against the recorded Eagle3 prototype, features included."""
    visible = [cause for cause in eagle.CAUSES if cause.id != "leading-rows"]
    return _eagle_study(root, case, [features.CAUSE, *visible], recorded=True)


def eagle_and_prototype_everywhere(root: Path, case: Case) -> Study:
    """The same with every position in the loss, where the first positions count; nothing of that was recorded."""
    with tempfile.TemporaryDirectory() as folder:
        changed = with_every_row_in_the_loss(case, Path(folder))
        return _eagle_study(root, changed, [features.CAUSE, *eagle.CAUSES], recorded=False)


def _eagle_study(root: Path, case: Case, causes: Sequence[Cause], recorded: bool) -> Study:
    trace, setup, batch = run_other(root, OTHERS["eagle"], case), prepare(case), eagle_batch(case)
    seen = features.features_side(case, batch.real)

    def side(chosen: frozenset[str]) -> Tensors:
        return {**eagle.eagle(setup, batch, trace.facts, chosen), **seen(chosen)}

    theirs = eagle.aligned(trace.tensors, batch.real)
    rows = "" if recorded else ", every position in the loss"
    subject = Subject("others", case.name, f"EAGLE against prototype{rows}")
    if not recorded:
        return study(subject, theirs, side, causes, trace.facts)
    start = eagle.at_positions(_recorded(case), batch.real)
    return study(subject, theirs, side, causes, {**trace.facts, "prototype": prototype_facts(case)}, start)


def eagle_and_speculators(root: Path, case: Case) -> Study:
    """EAGLE's script against Speculators' own forward, on one sample."""
    trace, batch = run_other(root, OTHERS["eagle"], case), eagle_batch(case)

    def side(causes: frozenset[str]) -> Tensors:
        return speculators.speculators(case, batch, trace.facts, causes)

    theirs = {name: value for name, value in eagle.aligned(trace.tensors, batch.real).items() if name != "features"}
    subject = Subject("others", case.name, "EAGLE against Speculators")
    return study(subject, theirs, side, speculators.CAUSES, trace.facts, speculators.formula(case, batch, trace.facts))


def hass_and_prototype(root: Path, case: Case) -> Study:
    """HASS' script against the recorded HASS prototype."""
    trace, setup = run_other(root, OTHERS["hass"], case), prepare(case)
    batch = make_batch([load_sample(file, None) for file in first_files(case)])
    real = batch["attention_mask"]

    def side(causes: frozenset[str]) -> Tensors:
        return hass.hass(setup, batch, trace.facts, causes)

    subject = Subject("others", case.name, "HASS against prototype")
    theirs, start = hass.aligned(trace.tensors, real), hass.aligned(_recorded(case), real)
    return study(subject, theirs, side, hass.CAUSES, {**trace.facts, "prototype": prototype_facts(case)}, start)


def _recorded(case: Case) -> dict[str, Tensor]:
    """What the prototype computed on the first batch, under the names of a study."""
    wanted = re.compile(r"step\d+\.(hidden|logits|loss)$|loss$|grad\.")
    return {name: value for name, value in load_recorded(case).group("mb0.").items() if wanted.match(name)}


def eagle_batch(case: Case) -> Batch:
    """The case's first batch, with the verifier's logits and the mask as the sample has it."""
    shifted, head = make_batch([load_sample(file, None) for file in first_files(case)]), prepare(case).head
    return Batch(
        input_ids=shifted["input_ids"],
        features=shifted["hidden_states"],
        target=shifted["target"],
        target_logits=shifted["target"] @ head.T,
        real=shifted["attention_mask"],
        mask=shifted["loss_mask"],
        raw_mask=padded(first_samples(case), "loss_mask"),
    )


STUDIES: dict[str, tuple[tuple[str, Callable[[Path, Case], Study]], ...]] = {
    "eagle": (
        ("eagle3_fp32_k3", eagle_and_prototype),
        ("eagle3_fp32_k3", eagle_and_prototype_everywhere),
        ("eagle3_fp32_k3_bs1", eagle_and_speculators),
    ),
    "hass": (("hass_fp32_k3", hass_and_prototype),),
}
"""The recorded cases of each original and what is studied there."""
