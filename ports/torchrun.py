"""torchrun as a job's script can rely on: ``python -m ports.torchrun --nproc_per_node 2 -m ports.eagle3.train ...``.

torch's own ends with 1 whatever its processes end with, and kills those that are not done saving 30 s after a signal.
This one hands a signal on, waits for them, and ends with the exit code of the first that ended otherwise than well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import psutil  # type: ignore[import-untyped]
from torch.distributed import run
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from ports.training.stop import LAUNCHER

HANDED_ON = (signal.SIGTERM, signal.SIGINT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; 128 + n where a process was ended by signal n.

    torch's launcher runs in a thread of its own: there it leaves signals alone, in every release, and warns of orphans,
    which end themselves here (:func:`ports.training.stop.stop_with_launcher`).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for number in HANDED_ON:
        signal.signal(number, _hand_on)
    os.environ[LAUNCHER] = str(os.getpid())
    logging.getLogger(api.__name__).addFilter(lambda record: "child thread" not in str(record.msg))
    try:
        with ThreadPoolExecutor(1) as launcher:
            launcher.submit(run.run, run.parse_args(words)).result()
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
