"""What a port saves: opened by Speculators it is the draft that was trained, and a run goes on from it to the bit."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from speculators import SpeculatorModel
from speculators.convert.eagle.eagle3_converter import Eagle3Converter
from torch import Tensor
from transformers import AutoConfig

import ports.eagle3.model
from parity.checks import state_row
from parity.compare import RowKey, compare, compare_groups, compare_series, compare_value
from parity.environment import deterministic, quietly
from parity.files import read_lines, read_object, read_tensors
from parity.names import NameMap
from parity.prototypes.case import RecordedCase
from parity.prototypes.port import ALGORITHMS, start_port
from parity.prototypes.recorded import PROTOTYPE_SEED, samples_per_pass
from parity.setup import setting_rows
from parity.tolerances import EXACT
from parity.trace_pair import TracePair
from parity.verdict import Row
from ports.training.saving import adam_state

GIVEN = {"embed_tokens.weight": "verifier.embed_tokens.weight", "t2d": "t2d", "d2t": "d2t"}
"""What a draft with a vocabulary of its own saves beyond what it trains, and the initial tensors it comes from."""

STOP = 3
"""Optimizer steps before the stop, inside a pass where there are more; a shorter run stops one before its end."""

LAYERS = "eagle_aux_hidden_state_layer_ids"
"""After how many layers of the verifier the features of an Eagle3 draft are taken."""

OF_THE_FILE = ("_commit_hash", "_name_or_path", "transformers_version", "speculators_version")
"""Entries of a saved configuration that say where it lies and what wrote it."""

BEYOND = 2
"""Steps of the second pass, so that the resumed run also draws an order of its own."""


def last_checkpoint(evidence: TracePair) -> Path:
    """The newest draft directory of the run."""
    prefix = ALGORITHMS[evidence.case.algorithm].checkpoint
    saved: list[Path] = [file.parent for file in evidence.left.checkpoints.glob(f"{prefix}*/config.json")]
    return max(saved, key=lambda folder: int(folder.name.removeprefix(prefix)))


def _stored(evidence: TracePair) -> dict[str, Tensor]:
    """The newest checkpoint's tensors; what it was given may lie there in 16 bits, where they are exact."""
    stored, own = read_tensors(last_checkpoint(evidence) / "model.safetensors"), evidence.left.draft.state_dict()
    return stored | {name: stored[name].to(own[name].dtype) for name in GIVEN if name in stored and name in own}


def check_round_trip(evidence: TracePair) -> list[Row]:
    """The file against the trained draft, key by key; the reopened draft against it, in its configuration and logits.

    Beyond the trained tensors the file holds what the algorithm adds by design, and nothing else.
    """
    subject, folder, draft = evidence.subject("round_trip"), last_checkpoint(evidence), evidence.left.draft
    stored, exact = _stored(evidence), EXACT
    ignored = set(draft._keys_to_ignore_on_save or [])
    trained = {name: value for name, value in draft.state_dict().items() if name not in ignored}
    rows = compare_groups(subject, "round_trip", trained, stored, exact)
    owned: set[str] = set(GIVEN) if ALGORITHMS[evidence.case.algorithm].owns_vocabulary else set()
    if owned:
        initial, own = read_tensors(evidence.case.initial), draft.state_dict()
        names = owned if draft.d2t is not None else owned - {"t2d", "d2t"}  # Speculators keeps no map of all tokens
        given = {name: initial[GIVEN[name]].to(own[name].dtype) for name in names}
        rows += compare_groups(subject, "given", given, _only(stored, given), exact)
    known = evidence.trained_by_original()
    missing, extra = known - set(stored), set(stored) - known - owned
    detail = f"missing {sorted(missing)}, beyond them {sorted(extra)}" if missing or extra else ""
    rows.append(subject.row("keys", "trained tensors", float(len(missing) + len(extra)), 0.0, not detail, detail))
    return rows + (_reopened(evidence, subject, folder) if all(row.passed for row in rows) else [])


def _only(tensors: dict[str, Tensor], names: Any) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name in names}


def _reopened(evidence: TracePair, subject: RowKey, folder: Path) -> list[Row]:
    draft, reopened = evidence.left.draft, SpeculatorModel.from_pretrained(folder)
    rows = [compare_value(subject, "class", "model", type(draft).__name__, type(reopened).__name__)]
    rows += [*_config_rows(subject, draft.config, reopened.config), *_serving_rows(evidence, subject, reopened.config)]
    attention = draft.config.transformer_layer_config._attn_implementation
    reopened.config.transformer_layer_config._attn_implementation = attention
    expected, found = (_last_logits(model, evidence) for model in (draft, reopened))
    return [*rows, compare(subject, "round_trip", "logits", expected, found, EXACT)]


def _config_rows(subject: RowKey, *configs: Any) -> list[Row]:
    """The entries of the trained draft's configuration and of the reopened one's that differ, else one row for all."""
    expected, found = (json.loads(json.dumps(one.to_dict(), default=_plain)) for one in configs)
    rows = setting_rows(subject, expected, found, NameMap())
    rows = [row for row in rows if row.tensor.rpartition(".")[2] not in OF_THE_FILE]
    whole = subject.row("configuration", f"{len(rows)} entries", 0.0, 0.0, bool(rows))
    return [row for row in rows if not row.passed] or [whole]


def _plain(value: Any) -> str:
    """A dtype as a file names it."""
    return str(value).removeprefix("torch.")


def _serving_rows(evidence: TracePair, subject: RowKey, config: Any) -> list[Row]:
    """What no forward shows and serving reads: the verifier, how many tokens are proposed, where features come from.

    The prototype's records hold entries 3, n // 2 + 1 and -3 of the hidden states of a verifier of n layers, which are
    n + 1. Where these are not three, as the configuration must name, nothing is said of them.
    """
    case, attached = evidence.case, config.speculators_config
    found = {
        "algorithm": attached.algorithm,
        "verifier": str(Path(attached.verifier.name_or_path).resolve()),
        "speculative_tokens": [proposal.speculative_tokens for proposal in attached.proposal_methods],
    }
    expected = dict(zip(found, (case.algorithm, str(case.verifier.resolve()), [case.ttt_steps])))
    if case.algorithm == "eagle3":
        depth = AutoConfig.from_pretrained(case.verifier).num_hidden_layers
        layers = read_object(case.configpath).get(LAYERS, [3, depth // 2 + 1, depth - 2])
        if len({*layers}) == len(layers):
            expected, found = expected | {LAYERS: layers}, found | {LAYERS: getattr(config, LAYERS)}
    return [compare_value(subject, "served", name, expected[name], found[name]) for name in expected]


@torch.no_grad()
def _last_logits(draft: Any, evidence: TracePair) -> Tensor:
    """Of the first batch, at the last TTT step."""
    batch, case = evidence.found.group("mb0.batch."), evidence.case
    inputs = batch["hidden_states"], batch["input_ids"], batch["attention_mask"], case.ttt_steps
    steps = ports.eagle3.model.unroll(draft, *inputs) if case.algorithm == "eagle3" else draft(*inputs)
    logits: Tensor = steps[-1].logits
    return logits


def check_converted(evidence: TracePair) -> list[Row]:
    """The prototype's own final weights through Speculators' converter: the native checkpoint, tensor by tensor."""
    subject = evidence.subject("converted")
    native = _stored(evidence)
    with tempfile.TemporaryDirectory() as folder:
        converted = _convert(evidence, Path(folder))
    exact = {name for name in converted if not converted[name].is_floating_point()} | {"embed_tokens.weight"}
    rows = compare_groups(subject, "converted", _only(converted, exact), _only(native, exact), EXACT)
    names = sorted({*converted, *native} - exact)
    sides = [
        replace(trace, tensors={**trace.tensors, **{f"final.{name}": held[name] for name in names if name in held}})
        for trace, held in zip(evidence.traces, (converted, native))
    ]
    evidence = replace(evidence, expected=sides[0], found=sides[1])
    return rows + [state_row(evidence, "converted", "final", f"final.{name}") for name in names]


def _convert(evidence: TracePair, folder: Path) -> dict[str, Tensor]:
    """Write what the prototype's final state holds in the converter's input layout, convert it, read it back."""
    maps = () if evidence.left.draft.d2t is None else ("t2d", "d2t")
    vocabulary = _only(read_tensors(evidence.case.initial), maps)
    source, target = folder / "source", folder / "target"
    source.mkdir()
    save_file({**evidence.expected.group("final."), **vocabulary}, source / "model.safetensors")
    config = json.loads(evidence.case.configpath.read_text()) | {"torch_dtype": "float32"}
    (source / "config.json").write_text(json.dumps(config))
    Eagle3Converter().convert(source, target, str(evidence.case.verifier), validate=False, norm_before_residual=True)
    return read_tensors(target / "model.safetensors")


def check_resume(evidence: TracePair) -> list[Row]:
    """Stopped and resumed against never stopped: equal in everything, with the case's settings, shuffle and noise."""
    case, subject, exact = evidence.case, evidence.subject("resume"), EXACT
    stop = min(STOP, steps_of(case)[1] - 1)
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder) / "straight"
        expected = _run(case, straight, 0, save_steps=stop)
        found = _run(case, Path(folder) / "resumed", 1, ckpt_path=straight / f"step_{stop}")
        logs = [list(read_lines(Path(folder) / name / "metrics.jsonl")) for name in ("straight", "resumed")]
    schedules = expected.pop("schedule"), found.pop("schedule")
    rows = [compare_value(subject, "schedule", name, schedules[0][name], schedules[1][name]) for name in schedules[0]]
    for kind in expected:
        rows += compare_groups(subject, "resume", expected[kind], found[kind], exact)
    rows.append(compare_value(subject, "log", "lines", *map(len, logs)))
    for name in sorted(logs[0][0]) if logs[0] else ():
        mine, theirs = ([float(line.get(name, torch.nan)) for line in log] for log in logs)
        rows.append(compare_series(subject, "resume", name, mine, theirs, exact))
    return rows


def steps_of(case: RecordedCase) -> tuple[int, int]:
    """Optimizer steps of a pass and of the run; the last window of a pass may be a short one."""
    each = math.ceil(samples_per_pass(case) / case.bs / case.accumulation)
    return each, each * (case.epoch + 1)


def _run(case: RecordedCase, cpdir: Path, disturbance: int, **changes: Any) -> dict[str, dict[str, Any]]:
    """Where the port ends, with draws of its own, after one pass and a little more: weights, Adam's state, the rest.

    ``disturbance`` moves the seed of the process: what a resumed run draws must not depend on it.
    """
    each, total = steps_of(case)
    length = min(max(STOP + 1, each + BEYOND), total)
    seed = PROTOTYPE_SEED if case.seed is None else case.seed
    with deterministic(seed + disturbance), quietly():
        loop = start_port(case, cpdir, live=True, noise=True, shuffle=True, max_steps=length, **changes)
        loop.run()
        draft, state, drawn = loop.objective.draft, loop.schedule.state_dict(), loop.generators()
        end = {
            "weights": {name: value.detach().clone() for name, value in draft.named_parameters()},
            "adam": adam_state(draft, loop.optimizer),
            "generators": {f"generator {name}": one for name, one in drawn.items() if one.dtype != torch.float64},
            "schedule": {name: state[name] for name in ("last_epoch", "_step_count", "_last_lr")},
        }
    loop.accelerator.end_training()
    return end
