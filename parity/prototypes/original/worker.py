"""The child process: ``python -m parity.prototypes.original.worker request.json``, run in an empty directory.

It puts the stand-ins in place, imports the script, calls its ``main()`` and writes the recording.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from parity.errors import InputError
from parity.prototypes.original import meta, standins, watch, weights
from parity.prototypes.original import recorder as recording
from parity.prototypes.original.checkout import Prototype, prototype_of
from parity.prototypes.original.child import answer
from parity.prototypes.original.recorder import Recorder, write_meta, write_recording
from parity.prototypes.original.request import OriginalRequest
from parity.prototypes.original.watch import LoopWatch, StepLimitError


def redirect_model(prototype: Prototype, name: str) -> str:
    """Let the script's ``Model`` and ``EConfig`` come from another module."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise InputError(name, "module", str(error), "a module that can be imported") from error
    for needed in ("Model", "EConfig"):
        if not hasattr(module, needed):
            raise InputError(name, needed, "missing", f"one: the module stands in for {prototype.model}")
    sys.modules[prototype.model] = sys.modules["model.configs"] = module
    return f"{prototype.model} and model.configs = {name}"


def import_with_print(prototype: Prototype, root: Path, record: Callable[..., None]) -> ModuleType:
    """Import the script with a ``print`` of our own among its globals, so that its lines can be kept."""
    spec = importlib.util.spec_from_file_location(prototype.script, prototype.script_path(root))
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    script.__dict__["print"] = record
    sys.modules[prototype.script] = script
    spec.loader.exec_module(script)
    return script


INIT_LINE = "Model(...) parameters overwritten after construction by the values of a file (embed_tokens, lm_head kept)"


class Run:
    """One run of one script: what is wrapped around it and what has been seen of it."""

    def __init__(self, request: OriginalRequest, scratch: Path) -> None:
        self.request = request
        self.prototype: Prototype = prototype_of(request.algorithm)
        self.checkpoints = scratch / "cp"
        self.hidden_paths = {str(request.fixture): "FIXTURE", str(scratch): "WORK"}
        self.arguments = meta.arguments_of(request, self.checkpoints)
        self.recorder = Recorder(request.algorithm) if request.record else None
        self.watch = LoopWatch(self.recorder, request.max_optimizer_steps, request.count_flops)
        self.patches: list[str] = []
        self.stubs: list[str] = []
        self.prints: list[str] = []
        self.walked: list[str] = []
        self.initial: weights.Tensors = {}
        self.trainable: dict[str, bool] = {}
        self.model: Any = None
        self.wrapped: Any = None

    def go(self) -> None:
        """Prepare, import, train, write."""
        self._before_import()
        script = self._import_script()
        self._after_import(script)
        stopped_early = call_main(script)
        write_results(self, script, stopped_early)

    def _before_import(self) -> None:
        for name in ("t2d.npy", "d2t.npy"):
            if (self.request.fixture / name).exists():
                shutil.copy(self.request.fixture / name, name)
        self.stubs = standins.add_loss_kwargs() + standins.add_default_rope()
        if self.request.dtype == "fp32":
            self.patches.append(standins.force_full_precision())
        self.patches.append(standins.make_cuda_identity())

    def _import_script(self) -> ModuleType:
        sys.path.insert(0, str(self.prototype.path(self.request.prototype)))
        sys.argv = [str(self.prototype.script_path(self.request.prototype)), *self.arguments]
        if self.request.redirect is not None:
            self.patches.append(redirect_model(self.prototype, self.request.redirect))
        return import_with_print(self.prototype, self.request.prototype, self._print)

    def _print(self, *values: Any, **_: Any) -> None:
        self.prints.append(" ".join(str(value) for value in values))

    def _after_import(self, script: ModuleType) -> None:
        request = self.request
        if request.dtype == "fp32":
            modules = [script] + ([] if request.redirect else [sys.modules[self.prototype.model]])
            self.patches.append(standins.read_bfloat16_as_float32(modules))
        if self.recorder is not None:
            self.patches.append(standins.watch_noise(script, self.recorder.uniforms.append))
        self.walked = [Path(path).name for path in script.datapath]
        self.patches += [standins.sort_files(script), standins.load_in_process(script)]
        if not request.noise:
            self.patches.append(standins.switch_noise_off(script))
        self.patches.append(standins.change_loader(script, request.shuffle))
        self._wrap_model(script)
        self._wrap_prepare(script.accelerator)
        self._watch(script)

    def _wrap_model(self, script: ModuleType) -> None:
        construct = script.Model

        def build(config: Any, *positional: Any, **named: Any) -> Any:
            if self.request.redirect is None:
                config._attn_implementation = "eager"
            self.model = construct(config, *positional, **named)
            self._start_from(self.model)
            return self.model

        script.__dict__["Model"] = build
        if self.request.redirect is None:
            self.patches.append("EConfig._attn_implementation = 'eager'")
        if self.request.initial_weights is not None:
            self.patches.append(INIT_LINE)

    def _start_from(self, model: torch.nn.Module) -> None:
        if self.request.initial_weights is not None:
            weights.overwrite(model, self.request.initial_weights)
        if self.request.dtype == "fp32":
            require_float32(model)
        if self.recorder is not None:
            self.initial = weights.snapshot(model)
            self.trainable = {name: value.requires_grad for name, value in model.named_parameters()}
            watch.watch_model(model, self.recorder)

    def _wrap_prepare(self, accelerator: Any) -> None:
        prepare = accelerator.prepare

        def prepare_and_watch(*objects: Any) -> tuple[Any, ...]:
            model, *others = prepare(*objects)
            self.wrapped = standins.wrap_model(model)
            if self.recorder is not None:
                watch.watch_prepared((self.wrapped, *others), accelerator, self.model, self.recorder)
            if self.request.seed is not None:
                self.patches.append(standins.seed_everything(self.request.seed))
            return (self.wrapped, *others)

        accelerator.prepare = prepare_and_watch
        self.patches.append(standins.WRAP_LINE)

    def _watch(self, script: ModuleType) -> None:
        script.__dict__["tqdm"] = self.watch
        self.patches.append("main module's tqdm replaced by a generator that keeps time")
        self.watch.accelerator = script.accelerator
        if self.recorder is None:
            return
        watch.watch_script(script, self.recorder)
        if self.request.redirect is None:
            self.recorder.dtypes.watch_attention(sys.modules[self.prototype.layers])
        self.patches += watch.WATCH_LINES


def require_float32(model: torch.nn.Module) -> None:
    """A float32 run with other parameters would compare something else."""
    for name, value in model.named_parameters():
        if value.dtype != torch.float32:
            raise InputError(type(model).__module__, name, value.dtype, torch.float32)


def call_main(script: ModuleType) -> bool:
    """Train; True if the run ended early because enough optimizer steps were made."""
    try:
        script.main()
    except StepLimitError:
        return True
    return False


def main() -> int:
    """Read the request named on the command line and run it in the current directory."""
    return answer(lambda: _run_file(Path(sys.argv[1])))


def _run_file(path: Path) -> None:
    request = OriginalRequest.from_json(path.read_text(), str(path))
    torch.set_num_threads(request.threads)
    Run(request, Path.cwd()).go()


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
    recorder.tensors["final.fp32_master_flat"] = recording.master_weights(run.wrapped)
    rates = [row["lr_used"] for row in recorder.rows if row["synced"]]
    return recording.describe_zero2(run.wrapped, run.initial["embed_tokens.weight"], rates)


def _link_fixture(request: OriginalRequest) -> None:
    """Let the recording find its fixture: a link in the case folder, unless the folder lies beside it anyway."""
    beside = request.output / "fixture"
    if not (beside.exists() and beside.samefile(request.fixture)):
        (request.folder / "fixture").symlink_to(request.fixture, target_is_directory=True)


if __name__ == "__main__":
    sys.exit(main())
