"""The accelerator of a run: device, processes, precision and trackers, all in one place."""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator

from ports.training.settings import TrainingSettings
from ports.training.tracking import JsonLinesTracker


def build_accelerator(settings: TrainingSettings) -> Accelerator:
    """Precision from the settings or the launcher; metrics to ``cpdir/metrics.jsonl`` and the chosen trackers."""
    if settings.debug:
        logging.basicConfig(level=logging.DEBUG)
        torch.autograd.set_detect_anomaly(True)
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=[JsonLinesTracker(settings.cpdir / "metrics.jsonl"), *settings.log_with],
        project_dir=settings.cpdir,
    )
    accelerator.init_trackers("speculator-ports", config=_flat(settings))
    return accelerator


def _flat(settings: TrainingSettings) -> dict[str, str | int | float | bool]:
    """Settings as the scalar types that every tracker takes."""
    values = settings.as_json()
    return {key: value if isinstance(value, (int, float, bool)) else str(value) for key, value in values.items()}
