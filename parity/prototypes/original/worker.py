"""The child process: ``python -m parity.prototypes.original.worker request.pickle``, run in an empty directory.

It puts the stand-ins in place, imports the script, calls its ``main()`` and writes the recording.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import set_seed

from parity.environment import describe
from parity.errors import InputError
from parity.files import read_tensors, write_folder
from parity.prototypes.case import RecordedCase, command_line
from parity.prototypes.original import standins
from parity.prototypes.original.checkout import COMMIT, PROTOTYPES
from parity.prototypes.original.child import Request
from parity.prototypes.original.recorder import LoopWatch, Recorder, StepLimitError
from parity.prototypes.recorded import VERSIONS, refuse_misfits
from parity.speed import peak_bytes


class ScriptRun:
    """One run of one script: what is wrapped around it and what has been seen of it."""

    def __init__(self, request: Request) -> None:
        self.request, self.case = request, request.case
        self.prototype = PROTOTYPES[self.case.algorithm]
        self.recorder = Recorder(self.case.algorithm) if request.record else None
        self.loop = LoopWatch(self.recorder, request.max_optimizer_steps)
        self.seed = request.seed if self.case.noise or self.case.shuffle else None
        self.arguments = arguments_of(self.case)
        self.prints: list[str] = []
        self.walked: list[str] = []
        self.model: Any = None

    def go(self) -> None:
        """Prepare, import, train, write."""
        torch.set_num_threads(self.request.threads)
        for file in self.case.fixture.glob("*.npy"):  # the script reads the vocabulary's maps from where it runs
            shutil.copy(file, file.name)
        script = self._import_script()
        self._arrange(script)
        with contextlib.suppress(StepLimitError):
            script.main()
        self._write(script)

    def _import_script(self) -> ModuleType:
        """Import it with a ``print`` of our own among its globals, so that its lines can be kept."""
        standins.add_lost_names()
        if self.case.dtype == "fp32":
            standins.force_full_precision()
        standins.make_cuda_identity()
        folder = self.request.prototype / self.prototype.folder
        file = folder / (self.prototype.script.replace(".", "/") + ".py")
        sys.path.insert(0, str(folder))
        sys.argv = [str(file), *self.arguments]
        if self.request.redirect is not None:
            other = importlib.import_module(self.request.redirect)
            sys.modules[self.prototype.model] = sys.modules["model.configs"] = other
        spec: Any = importlib.util.spec_from_file_location(self.prototype.script, file)
        script = sys.modules[self.prototype.script] = importlib.util.module_from_spec(spec)
        script.__dict__["print"] = lambda *values, **_: self.prints.append(" ".join(map(str, values)))
        spec.loader.exec_module(script)
        return script

    def _arrange(self, script: Any) -> None:
        """Everything that is changed from outside between import and ``main()``."""
        full = sys.modules[self.prototype.model] if self.case.dtype == "fp32" else None
        standins.proxy_torch(script, full)
        self.walked = [Path(path).name for path in script.datapath]
        standins.arrange_data(script, self.case.noise, self.case.shuffle)
        script.Model = functools.partial(self._build, script.Model)
        script.accelerator.prepare = functools.partial(self._prepare, script.accelerator.prepare)
        self.loop.accelerator, script.tqdm = script.accelerator, self.loop
        if self.recorder is not None:
            self.recorder.listen_to_script(script)

    def _build(self, construct: Any, config: Any, *positional: Any, **named: Any) -> Any:
        """The script's model, from the case's initial weights."""
        if self.request.redirect is None:
            config._attn_implementation = "eager"
        self.model = construct(config, *positional, **named)
        overwrite(self.model, self.case)
        if self.recorder is not None:
            self.recorder.listen_to_model(self.model)
        return self.model

    def _prepare(self, prepare: Any, *objects: Any) -> tuple[Any, ...]:
        """What is trained, as accelerate has wrapped it."""
        model, *others = prepare(*objects)
        wrapped = model if hasattr(model, "module") else torch.nn.DataParallel(model)  # DeepSpeed's has one
        if self.recorder is not None:
            optimizer = next(item for item in others if isinstance(item, AcceleratedOptimizer))
            scheduler = next(item for item in others if isinstance(item, AcceleratedScheduler))
            self.recorder.listen_to_run(self.model, optimizer, scheduler)
        if self.seed is not None:
            set_seed(self.seed)
        return (wrapped, *others)

    def _write(self, script: Any) -> None:
        """The recording, whole or not at all; with ``record`` off only ``meta.json`` with the timings."""
        facts = {
            "step_seconds": self.loop.seconds,
            "step_cpu_seconds": self.loop.cpu_seconds,
            "first_step_flops": self.loop.first_step_flops,
            "peak_bytes": peak_bytes(),
        }
        if self.recorder is not None:
            facts = self._facts(script, self.recorder) | facts

        def fill(folder: Path) -> None:
            (folder / "meta.json").write_text(json.dumps(facts, indent=1) + "\n")
            if self.recorder is not None:
                self.recorder.write(folder, self.model, self.case.initial)
                shutil.copy(self.case.initial, folder)
                if self.request.link_fixture:
                    (folder / "fixture").symlink_to(self.case.fixture, target_is_directory=True)
                else:
                    shutil.copytree(self.case.fixture, folder / "fixture")

        write_folder(self.request.folder, fill)

    def _facts(self, script: Any, recorder: Recorder) -> dict[str, Any]:
        """What ``meta.json`` says of the case, and what was seen beside its numbers."""
        versions, case, saved = describe(), self.case, Path("cp")
        files = sorted(path for path in saved.rglob("*") if path.is_file())
        return {
            "case": case.name,
            "which": case.algorithm,
            "dtype": case.dtype,
            "commit": COMMIT,
            **{name: versions[name] for name in VERSIONS},
            "argv": [self._portable(word) for word in self.arguments],
            "total_steps": script.total_steps,
            "warm_steps": script.warm_steps,
            "train_config": {name: self._portable(value) for name, value in script.train_config.items()},
            "noise": case.noise,
            "shuffle": case.shuffle,
            "seed": self.seed,
            "initial": case.initial.name,
            "samples_files": [Path(path).name for path in script.datapath],
            "os_walk_order_seen": self.walked,
            "sample_index_order": recorder.order,
            "prints": self.prints,
            "saved": [{"file": str(path.relative_to(saved)), "zip_pickle": zipfile.is_zipfile(path)} for path in files],
        }

    def _portable(self, value: Any) -> Any:
        """A word or setting without the folders of this machine."""
        if not isinstance(value, str):
            return value
        return value.replace(str(self.case.fixture), "FIXTURE").replace(str(Path.cwd()), "WORK")


def arguments_of(case: RecordedCase) -> list[str]:
    """The script's command line."""
    named = {**command_line(case), "cpdir": str(Path.cwd() / "cp"), "topk_w": "0"}
    return [word for name, value in named.items() for word in (f"--{name}", value)]


def overwrite(model: torch.nn.Module, case: RecordedCase) -> None:
    """Copy ``init.<name>`` over each parameter.

    Raises:
        InputError: a name or shape that is not the model's, a parameter that lacks, or one of a float32 run in half.
    """
    stored = {name[5:]: value for name, value in read_tensors(case.initial).items() if name.startswith("init.")}
    parameters = dict(model.named_parameters())
    refuse_misfits(case.initial, stored, parameters)
    with torch.no_grad():
        for name, value in stored.items():
            parameters[name].copy_(value)
    for name, value in parameters.items():
        if case.dtype == "fp32" and value.dtype != torch.float32:
            raise InputError(type(model).__module__, name, value.dtype, torch.float32)


def main() -> int:
    """Run the request that the command line names in the current directory; bad input is said on stderr."""
    try:
        ScriptRun(pickle.loads(Path(sys.argv[1]).read_bytes())).go()
    except InputError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
