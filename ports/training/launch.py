"""The accelerator of a run: device, processes, precision and trackers, among them its own log of JSON lines."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator, DistributedType
from accelerate.tracking import GeneralTracker, on_main_process
from accelerate.utils import InitProcessGroupKwargs, is_tensorboard_available, is_wandb_available
from torch.distributed.fsdp import MixedPrecisionPolicy

from ports.errors import InputError
from ports.numerics import fix_numerics, numerics
from ports.training.checkpoint import Digest, write_file
from ports.training.settings import Precision, TrainingSettings

LOG, SETTINGS = "metrics.jsonl", "settings.json"
TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
"""Is it installed? Accelerate passes over one that is not."""

PATIENCE = timedelta(hours=24)
"""How long processes wait for the one that decodes ``--val-prompts``; NCCL's default is 10 minutes."""


def build_accelerator(settings: TrainingSettings) -> Accelerator:
    """Precision from the settings or the launcher; nothing is written yet, see :func:`start_trackers`.

    Raises:
        InputError: a tracker that is not installed, or launched with the first version of FSDP, with DeepSpeed and
            another stage of ZeRO than 1 and 2, in another precision than bf16, or as one process where more were meant.
    """
    for name in settings.log_with:
        if not TRACKERS[name]():
            found = f"{name}, which is not installed"
            raise InputError("command line", "--log-with", found, f"it: pip install 'speculator-parity[{name}]'")
    if settings.debug:
        logging.basicConfig(level=logging.DEBUG)
        torch.autograd.set_detect_anomaly(True)
    _check_precision(settings.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower())
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # every process builds the draft, and its verifier, whole
    trackers = [JsonLinesTracker(settings.cpdir / LOG), *settings.log_with]
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=trackers,
        project_dir=settings.cpdir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    _keep(torch.distributed.group.WORLD)
    fix_numerics()  # for some launchers accelerate has turned TF32 on
    _refuse_lonely(accelerator)
    _refuse_unnamed_states(accelerator)
    _check_precision(accelerator.mixed_precision)  # DeepSpeed's config has one of its own
    if accelerator.distributed_type is DistributedType.FSDP:  # it would round features, targets, gradients and losses
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return accelerator


def _keep(group: Any) -> None:
    """Of several processes: a reference that nobody lets go of.

    Gloo's threads need the interpreter's lock to let go of the last collective, and who lets go of their process group
    waits for them with that lock in hand: a run that had saved everything could wait for ever.
    """
    if group is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def host_group() -> Any:
    """Of several processes: those over which they can ask each other without waiting for their devices; else None."""
    if not torch.distributed.is_initialized() or torch.distributed.get_backend() == "gloo":
        return torch.distributed.group.WORLD
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    _keep(group)
    return group


def start_trackers(accelerator: Accelerator, settings: TrainingSettings, kept: bytes = b"") -> None:
    """Metrics from now on to ``cpdir/metrics.jsonl``, which begins with ``kept``, and to the chosen trackers."""
    accelerator.log_with[0].kept = kept
    values = settings.as_json()
    flat = {key: value if isinstance(value, (int, float, bool)) else str(value) for key, value in values.items()}
    accelerator.init_trackers("speculator-ports", config={**flat, **numerics()})


def _check_precision(found: str) -> None:
    """float16 would need its losses scaled, float8 its layers replaced: neither is what the prototypes compute."""
    if found not in get_args(Precision):
        expected = " or ".join(get_args(Precision))
        raise InputError("accelerate launch", "mixed_precision", found, f"{expected}: --mixed-precision bf16")


def _refuse_lonely(accelerator: Accelerator) -> None:
    """On a CPU ``accelerate launch`` starts one process of several: it says where to meet, and not how many will."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and accelerator.num_processes == 1 and "WORLD_SIZE" not in os.environ:
        expected = "all of them: torchrun --nproc_per_node N -m ..., or --num_processes 1"
        raise InputError("accelerate launch", "num_processes", "one process of several", expected)


def _refuse_unnamed_states(accelerator: Accelerator) -> None:
    """FSDP1 flattens several parameters into one, without a name or a state of its own; ZeRO 3 takes them away."""
    if accelerator.distributed_type is DistributedType.FSDP and not accelerator.is_fsdp2:
        raise InputError("accelerate launch", "fsdp_version", 1, "2: --fsdp_version 2")
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        stage = accelerator.deepspeed_plugin.zero_stage
        if stage not in (1, 2):
            raise InputError("accelerate launch", "zero_stage", stage, "1 or 2: --zero_stage 2")


class JsonLinesTracker(GeneralTracker):
    """Appends one JSON object per logged step to ``metrics.jsonl``, floats at full precision.

    ``kept`` are a resumed run's lines. They and :data:`SETTINGS` take the place of what lies there with the first line
    or save, or at the end: until then the run may yet be refused.
    """

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.kept = file, b""
        self._settings: dict[str, Any] = {}
        self._stream: Any = None

    @property
    def tracker(self) -> Path:
        return self.file

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._settings = values

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        self._open()
        self._digest.update(line)
        self._stream.write(line)
        self._stream.flush()

    def _open(self) -> None:
        if self._stream is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            settings = json.dumps(self._settings, indent=1, sort_keys=True) + "\n"
            write_file(self.file.with_name(SETTINGS), settings.encode())
            write_file(self.file, self.kept)
            self._stream, self._digest = self.file.open("ab"), hashlib.sha256(self.kept)

    def written(self) -> Digest:
        """Of what was logged so far, which is on the disk when this returns."""
        self._open()
        os.fsync(self._stream.fileno())
        return Digest(bytes=self._stream.tell(), sha256=self._digest.hexdigest())

    @on_main_process
    def finish(self) -> None:
        self._open()
        self._stream.close()


def refuse_foreign_accumulation(accelerator: Accelerator) -> None:
    """A DeepSpeed config that accumulates by itself would divide the loss a second time."""
    if accelerator.gradient_accumulation_steps != 1:
        found = accelerator.gradient_accumulation_steps
        expected = "1 or auto: accumulate with --gradient-accumulation-steps"
        raise InputError("DeepSpeed config", "gradient_accumulation_steps", found, expected)
