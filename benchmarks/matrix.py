"""Which shapes are timed, and which sides can take them."""

from __future__ import annotations

from benchmarks.shapes import Shape

ALGORITHMS = ("eagle3", "hass")
DENSE = ("original", "reference", "port eager")
"""They hold several [heads, T, T] tensors a step."""

LONGEST_DENSE = 4096

QUICK = [Shape(algorithm, length) for algorithm in ALGORITHMS for length in (256, 1024, 2048)]

FULL = [
    *(Shape(algorithm, length) for algorithm in ALGORITHMS for length in (256, 512, 1024, 2048, 4096, 8192, 16384)),
    *(Shape(algorithm, 1024, k) for algorithm in ALGORITHMS for k in (1, 2, 4, 5, 6, 7)),
    *(Shape(algorithm, length, dtype="bf16") for algorithm in ALGORITHMS for length in (1024, 2048)),
    *(Shape(algorithm, length, threads=2) for algorithm in ALGORITHMS for length in (1024, 2048)),
    *(Shape(algorithm, length, device="cuda", dtype="bf16") for algorithm in ALGORITHMS for length in (2048, 8192)),
]


def sides_of(shape: Shape, original: bool) -> list[str]:
    """The sides that are timed on a shape; ``original``: is there a checkout of the prototypes."""
    sides = ["original"] if original else []
    sides += ["reference"]
    sides += ["speculators", "port chain"] if shape.algorithm == "eagle3" else []
    sides += ["port eager", "port"]
    return [side for side in sides if _can(side, shape)]


def _can(side: str, shape: Shape) -> bool:
    if shape.length > LONGEST_DENSE and side in (*DENSE, "speculators"):
        return False
    return not (side in ("original", "reference") and (shape.dtype, shape.device) != ("fp32", "cpu"))
