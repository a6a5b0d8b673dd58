"""Start the process that runs an original."""

from __future__ import annotations

import importlib.util
import os
import pickle
import socket
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity.errors import InputError
from parity.outside import run_command
from parity.prototypes.case import RecordedCase
from parity.prototypes.original.checkout import CHECKOUT, verify
from parity.prototypes.recorded import PROTOTYPE_SEED


@dataclass(frozen=True)
class Request:
    """One run of a prototype's training script, by absolute paths: the child works in another directory.

    ``prototype`` is the root of the checkout; the recording goes to ``output``, named like the case. Where the script
    draws noise or order, it is seeded when ``accelerator.prepare`` has returned, unless ``seed`` is None.
    ``redirect`` names a module whose ``Model`` and ``EConfig`` take the place of the prototype's.
    ``max_optimizer_steps`` ends the run early. Without ``record`` only ``meta.json`` is written, with the timings
    and the first step's FLOPs. The fixture is copied into the recording, which can then be read anywhere, or linked.
    """

    case: RecordedCase
    prototype: Path
    output: Path
    seed: int | None = PROTOTYPE_SEED
    redirect: str | None = None
    threads: int = 1
    max_optimizer_steps: int | None = None
    record: bool = True
    link_fixture: bool = False

    @property
    def folder(self) -> Path:
        """Where the recording goes."""
        return self.output / self.case.name


WORKER = "parity.prototypes.original.worker"
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "SYSTEMROOT")
_MEASURED = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
_PROJECT = Path(__file__).resolve().parents[3]


def record_original(
    case: RecordedCase, prototype: Path, output: Path, timeout: float | None = 1800.0, **options: Any
) -> Path:
    """Run the prototype on a case and return the folder of its recording.

    Args:
        case, prototype, output, options: of a :class:`Request`.
        timeout: in seconds.

    Raises:
        InputError: another checkout, a fixture with missing parts, or an output folder that is already there.
        SideError: the process failed or ran out of time; with the last lines of its standard error.
    """
    paths: dict[str, Any] = {name: value.absolute() for name, value in vars(case).items() if isinstance(value, Path)}
    case = replace(case, **paths)
    request = Request(case, prototype.absolute(), output.absolute(), **options)
    _check(request)
    with tempfile.TemporaryDirectory(prefix="parity-original-") as name:
        sealed = Path(name) / "request.pickle"  # of this process for its own child, in a folder nobody else may write
        sealed.write_bytes(pickle.dumps(request))
        environment = plain_environment(request.threads) | (deepspeed_environment() if case.dtype == "bf16ds" else {})
        what = f"the {case.algorithm} prototype, case {case.name}"
        run_command([sys.executable, "-m", WORKER, str(sealed)], what, timeout, cwd=sealed.parent, env=environment)
    return request.folder


def _check(request: Request) -> None:
    """What a run needs is there, and nothing is in its way."""
    case = request.case
    if wrong := verify(request.prototype, case.algorithm):
        lines = "".join(f"\n  {line}" for line in wrong)
        raise InputError(request.prototype, "files", f"{len(wrong)} that differ", f"{CHECKOUT}:{lines}")
    maps = ("t2d.npy", "d2t.npy") if case.algorithm == "eagle3" else ()
    for path in (case.verifier, *(case.fixture / name for name in maps)):
        if not path.exists():
            raise InputError(path, "file", "missing", f"it, for a run of {case.algorithm}")
    if case.dtype == "bf16ds" and importlib.util.find_spec("deepspeed") is None:
        raise InputError(case.name, "dtype", "bf16ds without the package deepspeed", "python -m pip install deepspeed")
    if request.folder.exists():
        raise InputError(request.folder, "output", "a folder", "none: a recording is never overwritten")


def plain_environment(threads: int) -> dict[str, str]:
    """Fixed threads, no GPU, no network, and little else."""
    env = {name: os.environ[name] for name in (*_PASSED_ON, *_MEASURED) if name in os.environ}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_PROJECT), env.get("PYTHONPATH")]))
    env |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return env | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}


def deepspeed_environment() -> dict[str, str]:
    """What ``accelerate launch --use_deepspeed`` sets for one process, with gloo on the CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
        "ACCELERATE_GRADIENT_CLIPPING": "1.0",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "DS_ACCELERATOR": "cpu",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
