"""A run's records held against its verifier, before its first step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ports.errors import InputError
from ports.training.data import RecordDataset
from ports.training.online import OnlineDataset
from ports.training.records import SUFFIX
from ports.training.settings import TrainingSettings
from ports.verifier.config import verifier_config
from ports.verifier.states import Stored, check_states

COUNT = 8
"""Records of a directory that are looked at, spread over it."""


def hold_records(
    settings: TrainingSettings,
    layers: Sequence[int] | None,
    datasets: Sequence[RecordDataset],
    accelerator: Accelerator,
) -> list[str]:
    """The main process holds some records of each of ``datasets`` against the verifier; all end if one does not hold.

    What it found is for the user, a line a dataset, once nothing else refuses the run.

    Args:
        settings: ``records_check`` says how.
        layers: of the features, the draft config's; HASS has none.
        datasets: what is trained and validated on; one that computes its features has nothing to be held.
        accelerator: on its device the verifier runs.

    Raises:
        InputError: see :func:`ports.verifier.states.check_states`.
    """
    if settings.records_check == "off":
        return ["records NOT held against the verifier: --records-check off"]
    held: list[str] = []
    found: list[InputError | None] = [None]
    try:
        for dataset in datasets if accelerator.is_main_process else ():
            stored = [] if isinstance(dataset, OnlineDataset) else some_of(dataset, layers, settings.basepath)
            if stored:
                alone = settings.records_check == "head"
                held.append(check_states(settings.basepath, stored, accelerator.device, alone))
    except InputError as error:
        found = [error]
    finally:
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()  # the draft is to have it
    (wrong,) = broadcast_object_list(found)
    if wrong is not None:
        raise wrong
    return held


def some_of(dataset: RecordDataset, layers: Sequence[int] | None, verifier: str, count: int = COUNT) -> list[Stored]:
    """``count`` records, spread over all; those that cannot be used are left to the run, where it skips them.

    A prototype's record has its features by the prototypes' rule, which names an entry twice for verifiers of 4 to 6
    layers, where the draft's config names a neighbour.

    Raises:
        InputError: one that cannot be used, where the run does not skip them.
    """
    size = verifier_config(verifier).num_hidden_layers
    rule = [3, size // 2 + 1, size - 2]
    found = []
    for index in torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long().tolist():
        try:
            file, record = dataset.files[index], dataset.record(index)
        except InputError:
            if not dataset.skip_bad:
                raise
            continue
        by_rule = layers is not None and file.suffix != SUFFIX and len(set(rule)) < len(rule)
        found.append(Stored(file, record, rule if by_rule else layers))
    return found
