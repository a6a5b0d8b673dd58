"""The child process: ``python -m parity.prototypes.others.worker ORIGINAL CHECKOUT CASE OUTPUT`` in a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from parity.prototypes.case import read_case
from parity.prototypes.original.child import answer
from parity.prototypes.others.checkout import OTHERS
from parity.prototypes.others.keep import Keep


def main() -> int:
    """Run one original on one case and leave its trace in OUTPUT."""
    return answer(lambda: _run(sys.argv[1], *map(Path, sys.argv[2:5])))


def _run(name: str, root: Path, case: Path, output: Path) -> None:
    from parity.prototypes.others import eagle, hass

    torch.set_num_threads(1)
    keep = Keep()
    {"eagle": eagle.run, "hass": hass.run}[name](root, OTHERS[name], read_case(case), keep)
    keep.write(output)


if __name__ == "__main__":
    sys.exit(main())
