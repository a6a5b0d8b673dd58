"""The child process: ``python -m parity.runs.others.worker ORIGINAL CHECKOUT CASE OUTPUT`` in a scratch directory."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from parity.case import read_case
from parity.errors import InputError
from parity.runs.others.checkout import OTHERS
from parity.runs.others.keep import Keep


def main() -> int:
    """Run one original on one case and leave its trace in OUTPUT."""
    name, root, case, output = sys.argv[1], *map(Path, sys.argv[2:5])
    keep = Keep()
    try:
        from ports._torchaudio import skip_torchaudio

        skip_torchaudio()
        torch.set_num_threads(1)
        from parity.runs.others import eagle, hass

        {"eagle": eagle.run, "hass": hass.run}[name](root, OTHERS[name], read_case(case), keep)
        keep.write(output)
    except InputError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
