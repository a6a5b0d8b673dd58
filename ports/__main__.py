"""``python -m ports``; see :mod:`ports.cli`."""

import sys

from ports.cli import main

if __name__ == "__main__":
    sys.exit(main())
