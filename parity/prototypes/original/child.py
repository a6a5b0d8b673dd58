"""Start the process that runs an original, and say clearly why when it fails."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from parity.errors import InputError
from parity.prototypes.original.checkout import require_verified
from parity.prototypes.original.request import OriginalRequest

LAST_LINES = 15
"""Of its standard error, in the message about a run that failed."""


class OriginalRunError(RuntimeError):
    """The child process failed or ran out of time; the message ends with the last lines of its stderr."""


def run_child(
    module: str, words: list[str], cwd: Path, environment: dict[str, str], what: str, timeout: float | None
) -> None:
    """Run ``python -m module words`` in ``cwd``; ``what`` names it in errors, ``timeout`` is in seconds.

    Raises:
        OriginalRunError: it failed or ran out of time.
    """
    errors = cwd / "stderr.txt"
    with errors.open("wb") as stderr, (cwd / "stdout.txt").open("wb") as stdout:
        try:
            code = subprocess.run(
                [sys.executable, "-m", module, *words],
                cwd=cwd,
                env=environment,
                stdout=stdout,
                stderr=stderr,
                timeout=timeout,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise OriginalRunError(_explained(what, f"ran longer than {timeout} s", errors)) from error
    if code != 0:
        raise OriginalRunError(_explained(what, f"ended with exit status {code}", errors))


def _explained(what: str, became: str, errors: Path) -> str:
    lines = errors.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
    tail = "\n".join(f"  {line}" for line in lines) or "  (nothing on stderr)"
    return f"{what}, {became}:\n{tail}"


def answer(run: Callable[[], object]) -> int:
    """In the child: run, and return the exit code; bad input is said on stderr."""
    try:
        from ports._torchaudio import skip_torchaudio

        skip_torchaudio()
        run()
    except InputError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


WORKER = "parity.prototypes.original.worker"
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "SYSTEMROOT")
_MEASURED = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
_PROJECT = Path(__file__).resolve().parents[3]


def record_original(request: OriginalRequest, timeout: float | None = 1800.0) -> Path:
    """Run the prototype as requested and return the folder of its recording.

    The checkout is verified first. ``timeout`` is in seconds.
    """
    require_verified(request.prototype, request.algorithm)
    check_inputs(request)
    with tempfile.TemporaryDirectory(prefix="parity-original-") as name:
        scratch = Path(name)
        (scratch / "request.json").write_text(request.absolute().model_dump_json(indent=1))
        _run_worker(request, scratch, timeout)
    return request.folder


def check_inputs(request: OriginalRequest) -> None:
    """Refuse a fixture with missing parts, a missing weights file, or an output folder that is already there."""
    needed = [request.draft_config, request.data, request.verifier]
    needed += [request.fixture / "t2d.npy", request.fixture / "d2t.npy"] if request.algorithm == "eagle3" else []
    needed += [request.initial_weights] if request.initial_weights is not None else []
    for path in needed:
        if not path.exists():
            raise InputError(path, "file", "missing", f"it, for a run of {request.algorithm}")
    if request.dtype == "bf16ds" and importlib.util.find_spec("deepspeed") is None:
        raise InputError("request", "dtype", "bf16ds without the package deepspeed", "python -m pip install deepspeed")
    if request.folder.exists():
        raise InputError(request.folder, "output", "a folder", "none: a recording is never overwritten")


def child_environment(request: OriginalRequest) -> dict[str, str]:
    """A small environment, and DeepSpeed's variables where it is asked for."""
    return plain_environment(request.threads) | (_deepspeed_environment() if request.dtype == "bf16ds" else {})


def plain_environment(threads: int) -> dict[str, str]:
    """Fixed threads, no GPU, no network, and little else."""
    env = {name: os.environ[name] for name in (*_PASSED_ON, *_MEASURED) if name in os.environ}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_PROJECT), env.get("PYTHONPATH")]))
    env |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return env | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}


def _deepspeed_environment() -> dict[str, str]:
    """What ``accelerate launch --use_deepspeed`` sets for one process, with gloo on the CPU."""
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
        "MASTER_PORT": str(_free_port()),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_worker(request: OriginalRequest, scratch: Path, timeout: float | None) -> None:
    what = f"the {request.algorithm} prototype, case {request.case}"
    try:
        run_child(WORKER, [str(scratch / "request.json")], scratch, child_environment(request), what, timeout)
    except OriginalRunError:
        shutil.rmtree(request.folder, ignore_errors=True)
        raise
