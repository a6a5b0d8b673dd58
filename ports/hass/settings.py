"""HASS's command line."""

from __future__ import annotations

from ports.training.settings import TrainingSettings


class HassSettings(TrainingSettings):
    """Train a HASS draft for a verifier; the result is a Speculators checkpoint, opened after ``import ports.hass``."""
