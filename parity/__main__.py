"""``parity`` and ``python -m parity``."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from parity.errors import InputError

NEEDED = ("matplotlib", "pytest")
"""What the extra ``[parity]`` adds to what the ports need."""


def main() -> None:
    """Entry point; without the extra, one line says how to get it, and the exit code is 2."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        remedy = "what comes with pip install 'speculator-parity[parity]'"
        print(f"error: {InputError('environment', ', '.join(missing), 'nothing', remedy)}", file=sys.stderr)
        sys.exit(2)
    from parity.cli import main as run

    run()


if __name__ == "__main__":
    main()
