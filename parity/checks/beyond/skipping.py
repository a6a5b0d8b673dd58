"""What a run does that leaves out the records it cannot use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from parity.checks.beyond.forms import Dialogue, record_of, write_noise
from parity.checks.evidence import Evidence
from parity.compare import compare, compare_value
from parity.result import Row
from parity.runs.port import trace_port


def skipped_records(evidence: Evidence, dialogue: Dialogue, folder: Path) -> Iterator[Row]:
    """``--on_bad_record skip``: a batch is the batch of its good records, and what was left out is counted."""
    folder.mkdir()
    record = record_of(dialogue)
    torch.save(record, folder / "data_0.ckpt")
    write_noise(None, folder / "data_1.ckpt")
    settings: dict[str, Any] = {"noise": False, "shuffle": False, "epoch": 0, "on_bad_record": "skip", "live": True}
    both, subject = trace_port(evidence.case, tmpdir=folder, bs=2, **settings), evidence.subject("sources")
    (folder / "data_1.ckpt").unlink()
    alone = trace_port(evidence.case, tmpdir=folder, bs=1, **settings)
    for name in ("input_ids", "attention_mask", "hidden_states", "target"):
        expected, found = (trace.tensors[f"mb0.batch.{name}"] for trace in (alone, both))
        yield compare(subject, "batch", f"skipped beside: {name}", expected, found, evidence.tolerance("batch"))
    yield compare_value(subject, "prints", "skipped beside", ["Skipped 1 bad records"], both.prints[-1:])
    write_noise(None, folder / "data_0.ckpt")
    torch.save(record, folder / "data_1.ckpt")  # a pass over bad records alone is refused
    none = trace_port(evidence.case, tmpdir=folder, bs=1, **settings)
    yield compare_value(subject, "rows", "skipped alone", (0, 0.0, {}), _first(none))
    yield compare_value(subject, "rows", "skipped alone: ids", [[0]], none.tensors["mb0.batch.input_ids"].tolist())
    width, hidden = dialogue.features.shape[-1], dialogue.last.shape[-1]
    shapes = {"input_ids": [1, 1], "loss_mask": [1, 1], "hidden_states": [1, 1, width], "target": [1, 1, hidden]}
    own = {name: list(none.tensors[f"mb0.batch.{name}"].shape) for name in shapes}
    yield compare_value(subject, "rows", "skipped alone: shapes", shapes, own)
    sums = [float(none.tensors[f"mb0.batch.{name}"].sum()) for name in shapes]
    yield compare_value(subject, "rows", "skipped alone: sums", [0.0] * len(shapes), sums)


def _first(trace: Any) -> tuple[int, float, dict[str, float]]:
    point = trace.curve[0]
    return point.rows, point.loss, dict(point.logged)
