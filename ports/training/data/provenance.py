"""Do the records belong to this run's verifier and draft?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ports.errors import InputError
from ports.training.data.record_info import RecordInfo, check_features
from ports.training.data.records import recorded_info
from ports.training.verifier import verifier_fingerprint


def check_origin(
    files: Sequence[Path], algorithm: str, basepath: str, layers: Sequence[int] | None
) -> RecordInfo | None:
    """What the records say about themselves, once it fits the run; None for the prototypes', which say nothing.

    Args:
        files: the records.
        algorithm: what they must have been made for.
        basepath: the verifier of the run.
        layers: the draft config's ``eagle_aux_hidden_state_layer_ids``, if it has them.

    Raises:
        InputError: another algorithm, verifier or layers.
    """
    info = recorded_info(files)
    if info is None:
        return None
    if info.algorithm != algorithm:
        raise InputError(files[0].parent, "algorithm", f"records for {info.algorithm}", f"for {algorithm}")
    check_features(files[0].parent, info, verifier_fingerprint(basepath), layers)
    return info
