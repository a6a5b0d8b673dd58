"""A checkpoint that was saved opens in Speculators and is the model that was trained; nothing is lost or left over."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from speculators import SpeculatorModel
from speculators.convert.eagle.eagle3_converter import Eagle3Converter
from torch import Tensor

from parity.checks import compare_states
from parity.compare import Subject, compare, compare_groups, compare_value
from parity.errors import InputError
from parity.evidence import Evidence
from parity.files import read_tensors
from parity.prototypes.algorithms import ALGORITHMS
from parity.verdict import Row

VERIFIER_OWNED = {"embed_tokens.weight": "verifier.embed_tokens.weight"}


def last_checkpoint(evidence: Evidence) -> Path:
    """The newest draft directory of the run."""
    prefix = ALGORITHMS[evidence.case.algorithm].checkpoint
    found = evidence.live.checkpoints.glob(f"{prefix}*/config.json")
    saved = sorted(found, key=lambda file: int(file.parent.name.removeprefix(prefix)))
    if not saved:
        raise InputError(evidence.live.checkpoints, "checkpoints", "none", "a Speculators directory after every pass")
    return saved[-1].parent


def check_round_trip(evidence: Evidence) -> list[Row]:
    """The file against the trained draft, key by key; the reopened draft against it, logit by logit."""
    subject, folder = evidence.subject("round_trip"), last_checkpoint(evidence)
    stored = read_tensors(folder / "model.safetensors")
    trained = _saved_state(evidence.live.draft)
    rows = compare_groups(subject, "round_trip", trained, stored, evidence.tolerance("round_trip"))
    if ALGORITHMS[evidence.case.algorithm].owns_vocabulary:
        rows += _verifier_owned(evidence, subject, stored)
        rows += _vocabulary(evidence, subject, stored)
    rows.append(_exactly_trained(evidence, subject, stored))
    rows += _left_at_start(evidence, subject, stored)
    if all(row.passed for row in rows):
        rows += _reopened(evidence, subject, folder)
    return rows


def _saved_state(draft: Any) -> dict[str, Tensor]:
    ignored = set(draft._keys_to_ignore_on_save or [])
    return {name: value for name, value in draft.state_dict().items() if name not in ignored}


def _exactly_trained(evidence: Evidence, subject: Subject, stored: dict[str, Tensor]) -> Row:
    """Beyond the trained tensors the file holds what the algorithm adds by design, and nothing else."""
    owned = {*VERIFIER_OWNED, "t2d", "d2t"} if ALGORITHMS[evidence.case.algorithm].owns_vocabulary else set()
    trained = evidence.trained_by_original()
    missing, extra = trained - set(stored), set(stored) - trained - owned
    detail = f"missing {sorted(missing)}, beyond them {sorted(extra)}" if missing or extra else ""
    return subject.row("keys", "trained tensors", float(len(missing) + len(extra)), 0.0, not detail, detail)


def _verifier_owned(evidence: Evidence, subject: Subject, stored: dict[str, Tensor]) -> list[Row]:
    initial = read_tensors(evidence.case.initial)
    expected = {name: initial[source] for name, source in VERIFIER_OWNED.items()}
    found = {name: stored[name] for name in expected if name in stored}
    return compare_groups(subject, "verifier", expected, found, evidence.tolerance("round_trip"))


def _vocabulary(evidence: Evidence, subject: Subject, stored: dict[str, Tensor]) -> list[Row]:
    if evidence.live.draft.d2t is None:  # it says every token of the verifier, so Speculators keeps no map
        return []
    expected = {
        "t2d": torch.from_numpy(np.load(evidence.case.fixture / "t2d.npy")).bool(),
        "d2t": torch.from_numpy(np.load(evidence.case.fixture / "d2t.npy")).long(),
    }
    found = {name: stored[name] for name in expected if name in stored}
    return compare_groups(subject, "vocabulary", expected, found, evidence.tolerance("vocabulary"))


def _left_at_start(evidence: Evidence, subject: Subject, stored: dict[str, Tensor]) -> list[Row]:
    """Every tensor that moved in training differs from its value at the start of the run in the file too."""
    start, trained = evidence.found.group("init."), evidence.live.draft.state_dict()
    moved = [name for name in start if name in trained and not torch.equal(start[name], trained[name])]
    names = [name for name in moved if name in stored]
    rows = []
    for name in names:
        same = stored[name].shape == start[name].shape and torch.equal(stored[name].to(start[name].dtype), start[name])
        detail = "still at its initial value" if same else ""
        rows.append(subject.row("moved", name, float(same), 0.0, not same, detail))
    return rows


def _reopened(evidence: Evidence, subject: Subject, folder: Path) -> list[Row]:
    reopened = SpeculatorModel.from_pretrained(folder)
    rows = [compare_value(subject, "class", "model", type(evidence.live.draft).__name__, type(reopened).__name__)]
    reopened.config.transformer_layer_config._attn_implementation = (
        evidence.live.draft.config.transformer_layer_config._attn_implementation
    )
    expected, found = (_last_logits(model, evidence) for model in (evidence.live.draft, reopened))
    tolerance = evidence.tolerance("round_trip")
    return [*rows, compare(subject, "round_trip", "logits", expected, found, tolerance)]


def _last_logits(draft: Any, evidence: Evidence) -> Tensor:
    batch = evidence.found.group("mb0.batch.")
    return ALGORITHMS[evidence.case.algorithm].logits(draft, batch, evidence.case.ttt_steps)


def check_converted(evidence: Evidence) -> list[Row]:
    """The prototype's own final weights through Speculators' converter: the native checkpoint, tensor by tensor."""
    subject = evidence.subject("converted")
    native = read_tensors(last_checkpoint(evidence) / "model.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        converted = _convert(evidence, Path(folder))
    exact = {name for name in converted if not converted[name].is_floating_point()} | set(VERIFIER_OWNED)
    names = {f"final.{name}": name for name in sorted({*converted, *native} - exact)}
    pairs = {key: (converted.get(name), native.get(name)) for key, name in names.items()}
    return [
        *compare_groups(
            subject, "converted", _only(converted, exact), _only(native, exact), evidence.tolerance("converted")
        ),
        *compare_states(evidence, "converted", "final", pairs),
    ]


def _only(tensors: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name in names}


def _convert(evidence: Evidence, folder: Path) -> dict[str, Tensor]:
    """Write what the prototype's final state holds in the converter's input layout, convert it, read it back."""
    final = evidence.expected.group("final.")
    maps = () if evidence.live.draft.d2t is None else ("t2d", "d2t")
    vocabulary = {name: value for name, value in read_tensors(evidence.case.initial).items() if name in maps}
    source, target = folder / "source", folder / "target"
    source.mkdir()
    save_file({**final, **vocabulary}, source / "model.safetensors")
    config = json.loads(evidence.case.configpath.read_text()) | {"torch_dtype": "float32"}
    (source / "config.json").write_text(json.dumps(config))
    Eagle3Converter().convert(source, target, str(evidence.case.verifier), validate=False, norm_before_residual=True)
    return read_tensors(target / "model.safetensors")
