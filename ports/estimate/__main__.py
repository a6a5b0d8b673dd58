"""``speculator-estimate ...`` or ``python -m ports.estimate ...``: what a recipe will take."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ports.commands import exit_code
from ports.estimate.recipe import EstimateSettings, estimate
from ports.training.settings import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see :func:`ports.commands.exit_code`."""
    words = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: print("\n".join(estimate(parse(EstimateSettings, words)).lines())))


if __name__ == "__main__":
    sys.exit(main())
