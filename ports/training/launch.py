"""The accelerator of a run: device, processes, precision and trackers, all in one place."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from accelerate import Accelerator, DistributedType

from ports.errors import InputError
from ports.training.settings import TrainingSettings
from ports.training.tracking import JsonLinesTracker

LOG = "metrics.jsonl"


def build_accelerator(
    settings: TrainingSettings, log_to_keep: Callable[[Accelerator], bytes] = lambda accelerator: b""
) -> Accelerator:
    """Precision from the settings or the launcher; metrics to ``cpdir/metrics.jsonl`` and the chosen trackers.

    ``log_to_keep`` runs once the processes know each other and before anything is written; it gives what
    ``metrics.jsonl`` begins with.

    Raises:
        InputError: launched with the first version of FSDP, or with DeepSpeed and another stage of ZeRO than 1 and 2.
    """
    if settings.debug:
        logging.basicConfig(level=logging.DEBUG)
        torch.autograd.set_detect_anomaly(True)
    log = JsonLinesTracker(settings.cpdir / LOG)
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=[log, *settings.log_with],
        project_dir=settings.cpdir,
    )
    _refuse_unnamed_states(accelerator)
    log.kept = log_to_keep(accelerator)
    accelerator.init_trackers("speculator-ports", config=_flat(settings))
    return accelerator


def _refuse_unnamed_states(accelerator: Accelerator) -> None:
    """FSDP1 flattens several parameters into one, without a name or a state of its own; ZeRO 3 takes them away."""
    if accelerator.distributed_type is DistributedType.FSDP and not accelerator.is_fsdp2:
        raise InputError("accelerate launch", "fsdp_version", 1, "2: --fsdp_version 2")
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        stage = accelerator.deepspeed_plugin.zero_stage
        if stage not in (1, 2):
            raise InputError("accelerate launch", "zero_stage", stage, "1 or 2: --zero_stage 2")


def _flat(settings: TrainingSettings) -> dict[str, str | int | float | bool]:
    """Settings as the scalar types that every tracker takes."""
    values = settings.as_json()
    return {key: value if isinstance(value, (int, float, bool)) else str(value) for key, value in values.items()}
