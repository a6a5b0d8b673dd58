"""``python -m ports.serving``."""

from ports.serving.cli import main

if __name__ == "__main__":
    main()
