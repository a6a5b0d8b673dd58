"""Commands as tests run them, in their own process or handed to another one."""

from functools import partial

from ports import cli, flags


def main_of(name):
    """Takes words, by default this process', and gives the exit code of ``speculator NAME``."""
    return partial(_run, name)


def _run(name, words=None):
    return flags.run(lambda: cli.load(name), words)
