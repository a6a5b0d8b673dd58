"""Turn a finished run into the folder of its recording."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from parity.prototypes.original import meta, weights, zero2
from parity.prototypes.original.recorder import Recorder, write_meta, write_recording
from parity.prototypes.original.request import OriginalRequest

Run = Any
"""What the worker has of a finished run."""


def write_results(run: Run, script: ModuleType, stopped_early: bool) -> None:
    """Write the recording, or with ``record`` off only ``meta.json``."""
    facts = meta.describe_request(run.request)
    facts["argv"] = [meta.hide_paths(part, run.hidden_paths) for part in run.arguments]
    facts |= {"patches": run.patches, "transformers5_stubs": run.stubs, "prints": run.prints}
    facts |= meta.describe_script(script, run.walked, run.hidden_paths)
    facts |= meta.describe_timing(run.watch, stopped_early)
    if run.recorder is None:
        write_meta(run.request.folder, facts)
    else:
        _write_recording(run, run.recorder, facts)


def _write_recording(run: Run, recorder: Recorder, facts: dict[str, Any]) -> None:
    final = weights.snapshot(run.model)
    facts |= meta.describe_recording(recorder, run.initial, run.trainable, final)
    facts |= meta.describe_saved(run.checkpoints, final)
    facts["deepspeed"] = _describe_deepspeed(run, recorder)
    facts["initial"] = f"initial_{run.request.algorithm}_{run.request.dtype}.safetensors"
    verifier = weights.read_verifier(run.request.verifier)
    initial, aliases = weights.split_aliases({f"init.{k}": v for k, v in run.initial.items()}, verifier)
    recorder.tensors, after = weights.split_aliases(recorder.tensors, verifier | initial)
    final, facts["final_aliases"] = weights.split_aliases(final, verifier)
    facts["aliases"] = aliases | after
    run.request.folder.mkdir(parents=True)
    _link_fixture(run.request)
    start = {**initial, **verifier, **weights.read_vocabulary(run.request.fixture)}
    weights.save_initial(run.request.folder, start, facts["initial"])
    write_recording(run.request.folder, recorder, final, facts)


def _describe_deepspeed(run: Run, recorder: Recorder) -> dict[str, Any] | None:
    if run.request.dtype != "bf16ds":
        return None
    recorder.tensors["final.fp32_master_flat"] = zero2.master_weights(run.wrapped)
    rates = [row["lr_used"] for row in recorder.rows if row["synced"]]
    return zero2.describe(run.wrapped, run.initial["embed_tokens.weight"], rates)


def _link_fixture(request: OriginalRequest) -> None:
    """Let the recording find its fixture: a link in the case folder, unless the folder lies beside it anyway."""
    beside = request.output / "fixture"
    if not (beside.exists() and beside.samefile(request.fixture)):
        (request.folder / "fixture").symlink_to(request.fixture, target_is_directory=True)
