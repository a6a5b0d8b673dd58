"""What is mutated: the modules, and what is left out of them, each with its reason."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

GROUPS = {
    "attention": (
        "ports/training/attention/*.py",
        "ports/eagle3/model.py",
        "ports/eagle3/first_layer.py",
        "ports/hass/model.py",
        "ports/training/frozen_ends.py",
    ),
    "objective": (
        "ports/training/loss/*.py",
        "ports/eagle3/objective.py",
        "ports/hass/objective.py",
    ),
    "data": ("ports/training/data/*.py",),
    "loop": (
        "ports/training/loop.py",
        "ports/training/metrics.py",
        "ports/training/observer.py",
        "ports/training/optimizer.py",
        "ports/training/runs.py",
        "ports/training/settings.py",
        "ports/eagle3/train.py",
        "ports/hass/train.py",
    ),
    "checkpoint": (
        "ports/training/checkpoint/*.py",
        "ports/training/digests.py",
        "ports/training/saving.py",
        "ports/training/shards.py",
        "ports/training/tracking.py",
    ),
}
"""Code by what it does, as globs from the project's root."""

LEFT_OUT_FILES = {
    "ports/training/attention/flash_kernels.py": "its kernels are chosen on a GPU; a CPU takes the blocked one",
    "ports/training/checkpoint/zero.py": "runs under DeepSpeed alone",
    "ports/training/data/pass_clock.py": "measures how long a pass waited for data: no number of the training",
    "ports/training/data/workers.py": "loader processes, which no parity run has",
}
"""Files that need what no parity run has, or that take no part in training."""

LEFT_OUT_NAMES = {
    "ports/training/loss/normalisation.py:GlobalNormalisation": "several processes",
    "ports/training/loop.py:Loop._report_times": "times, which no two runs share",
    "ports/training/loop.py:Loop._stop_if_asked": "a signal or several processes",
    "ports/training/loop.py:_refuse_foreign_accumulation": "DeepSpeed",
    "ports/training/runs.py:run_command": "the command line around a run",
    "ports/training/settings.py:TrainingSettings": "the command line: help, defaults, what it refuses",
    "ports/eagle3/train.py:execute": "the command line around a run",
    "ports/eagle3/train.py:main": "the command line around a run",
    "ports/hass/train.py:execute": "the command line around a run",
    "ports/hass/train.py:main": "the command line around a run",
    "ports/training/checkpoint/stop.py:StopRequest": "signals",
    "ports/training/checkpoint/stop.py:_put_back": "signals",
}
"""Functions and classes, with all that is in them, that need what no parity run has."""

SIZES = {
    "ports/training/attention/flash_blocked.py": ("ROWS", "TILE"),
    "ports/training/loss/fused_loss.py": ("CHUNK", "ROWS", "COLUMNS"),
    "ports/training/loss/likeliest.py": ("BLOCK",),
}
"""Constants that say how much is worked on at a time: time and memory depend on them, numbers do not."""

KEPT_NAMES = {"ports/training/settings.py:TrainingSettings.schedule": "the learning rate's schedule"}
"""Exceptions to the above."""


def files(pattern: str = "") -> dict[str, str]:
    """Path from the root -> group, of every module in scope whose path contains ``pattern``."""
    found = {
        path.relative_to(ROOT).as_posix(): group
        for group, globs in GROUPS.items()
        for each in globs
        for path in sorted(ROOT.glob(each))
        if path.name != "__init__.py"
    }
    return {file: group for file, group in found.items() if pattern in file and file not in LEFT_OUT_FILES}
