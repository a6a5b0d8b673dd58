"""Errors that speak to the person who runs the harness: one class for the ports and the harness."""

from ports.errors import InputError

__all__ = ["InputError"]
