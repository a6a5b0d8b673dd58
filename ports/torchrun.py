"""torchrun as a job's script can rely on: ``python -m ports.torchrun --nproc_per_node 2 -m ports.eagle3.train ...``.

torch's own ends with 1 whatever its processes end with, and kills those that are not done saving 30 s after a signal.
This one hands a signal on, waits for them, and ends with the exit code of the first that ended otherwise than well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import psutil  # type: ignore[import-untyped]
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from ports.training.stop import LAUNCHER

HANDED_ON = (signal.SIGTERM, signal.SIGINT)

NONE_OF_THESE = "SIGQUIT"
"""The signal that torch may go on handling: it takes no empty list."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; 128 + n where a process was ended by signal n."""
    words = list(sys.argv[1:] if argv is None else argv)
    for number in HANDED_ON:
        signal.signal(number, _hand_on)
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        run.run(run.parse_args(["--signals-to-handle", NONE_OF_THESE, *words]))
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        code = first.exitcode if first.exitcode > 0 else 128 - first.exitcode
        print(f"process {rank} ended first, with {first.exitcode}: the job ends with {code}", file=sys.stderr)
        return code
    return 0


def _hand_on(number: int, frame: FrameType | None) -> None:
    """As SIGTERM, which may come twice: a scheduler has told the processes too."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()


if __name__ == "__main__":
    sys.exit(main())
