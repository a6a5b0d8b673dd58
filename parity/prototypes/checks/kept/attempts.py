"""What refusals are made of: things tried that must be refused, or accepted."""

from __future__ import annotations

from collections.abc import Callable

Attempt = tuple[str, str, Callable[[], object]]
"""Name, the field that must be named, and what must be refused. An empty field: it must be accepted."""
