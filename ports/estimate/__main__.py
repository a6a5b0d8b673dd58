"""``speculator-estimate ...`` or ``python -m ports.estimate ...``: what a recipe will take."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ports.errors import InputError
from ports.estimate.recipe import EstimateSettings, estimate
from ports.training.command_line import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 2 on bad input."""
    try:
        print("\n".join(estimate(parse(EstimateSettings, sys.argv[1:] if argv is None else argv)).lines()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
