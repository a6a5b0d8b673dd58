"""``parity new``: the skeleton of a port, whose first failing test says what to do. ``docs/porting.md`` walks it."""

from parity.scaffold.layout import new_port

__all__ = ["new_port"]
