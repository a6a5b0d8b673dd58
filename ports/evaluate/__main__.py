"""``python -m ports.evaluate``."""

from ports.evaluate.cli import main

if __name__ == "__main__":
    main()
