"""The child process: ``python -m parity.prototypes.original.worker request.json``, run in an empty directory.

It puts the stand-ins in place, imports the script, calls its ``main()`` and writes the recording.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from parity.errors import InputError
from parity.prototypes.original import meta, observe, standins, weights
from parity.prototypes.original.checkout import Prototype, prototype_of
from parity.prototypes.original.child import answer
from parity.prototypes.original.imports import import_with_print, redirect_model
from parity.prototypes.original.loop import LoopWatch, StepLimitError
from parity.prototypes.original.recorder import Recorder
from parity.prototypes.original.request import OriginalRequest
from parity.prototypes.original.results import write_results

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
            observe.watch_model(model, self.recorder)

    def _wrap_prepare(self, accelerator: Any) -> None:
        prepare = accelerator.prepare

        def prepare_and_watch(*objects: Any) -> tuple[Any, ...]:
            model, *others = prepare(*objects)
            self.wrapped = standins.wrap_model(model)
            if self.recorder is not None:
                observe.watch_prepared((self.wrapped, *others), accelerator, self.model, self.recorder)
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
        observe.watch_script(script, self.recorder)
        if self.request.redirect is None:
            self.recorder.dtypes.watch_attention(sys.modules[self.prototype.layers])
        self.patches += observe.WATCH_LINES


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


if __name__ == "__main__":
    sys.exit(main())
