"""The tiny verifier that generates answers and records."""

from tests.ports.generate.conftest import verifier, verifier_once  # noqa: F401
