"""The prototype's parameter names; the native model keeps them all."""

from __future__ import annotations


def to_native(name: str) -> str:
    """Speculators' name of a prototype parameter."""
    return name


def to_prototype(name: str) -> str:
    """The prototype's name of a Speculators parameter."""
    return name
