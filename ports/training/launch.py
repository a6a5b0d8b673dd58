"""The accelerator of a run: device, processes, precision and trackers, all in one place."""

from __future__ import annotations

import logging
import os
from typing import get_args

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import is_tensorboard_available, is_wandb_available

from ports.errors import InputError
from ports.numerics import fix_numerics, numerics
from ports.training.settings import Precision, TrainingSettings
from ports.training.tracking import JsonLinesTracker

LOG = "metrics.jsonl"
TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
"""Is it installed? Accelerate passes over one that is not."""


def build_accelerator(settings: TrainingSettings) -> Accelerator:
    """Precision from the settings or the launcher; nothing is written yet, see :func:`start_trackers`.

    Raises:
        InputError: a tracker that is not installed, or launched with the first version of FSDP, with DeepSpeed and
            another stage of ZeRO than 1 and 2, or in another precision than bf16.
    """
    for name in settings.log_with:
        if not TRACKERS[name]():
            found = f"{name}, which is not installed"
            raise InputError("command line", "--log_with", found, f"it: pip install 'speculator-parity[{name}]'")
    if settings.debug:
        logging.basicConfig(level=logging.DEBUG)
        torch.autograd.set_detect_anomaly(True)
    _check_precision(settings.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower())
    trackers = [JsonLinesTracker(settings.cpdir / LOG), *settings.log_with]
    accelerator = Accelerator(mixed_precision=settings.mixed_precision, log_with=trackers, project_dir=settings.cpdir)
    fix_numerics()  # for some launchers accelerate has turned TF32 on
    _refuse_unnamed_states(accelerator)
    _check_precision(accelerator.mixed_precision)  # DeepSpeed's config has one of its own
    return accelerator


def start_trackers(accelerator: Accelerator, settings: TrainingSettings, kept: bytes = b"") -> None:
    """Metrics from now on to ``cpdir/metrics.jsonl``, which begins with ``kept``, and to the chosen trackers."""
    accelerator.log_with[0].kept = kept
    values = settings.as_json()
    flat = {key: value if isinstance(value, (int, float, bool)) else str(value) for key, value in values.items()}
    accelerator.init_trackers("speculator-ports", config={**flat, **numerics()})


def _check_precision(found: str) -> None:
    """float16 would need its losses scaled, float8 its layers replaced: neither is what the prototypes compute."""
    if found not in get_args(Precision):
        expected = " or ".join(get_args(Precision))
        raise InputError("accelerate launch", "mixed_precision", found, f"{expected}: --mixed_precision bf16")


def _refuse_unnamed_states(accelerator: Accelerator) -> None:
    """FSDP1 flattens several parameters into one, without a name or a state of its own; ZeRO 3 takes them away."""
    if accelerator.distributed_type is DistributedType.FSDP and not accelerator.is_fsdp2:
        raise InputError("accelerate launch", "fsdp_version", 1, "2: --fsdp_version 2")
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        stage = accelerator.deepspeed_plugin.zero_stage
        if stage not in (1, 2):
            raise InputError("accelerate launch", "zero_stage", stage, "1 or 2: --zero_stage 2")
