"""What is timed: one optimizer step at h 512, 8 heads, 2 key/value heads, head_dim 64, I 1792, V 32768, D 8192."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parity.fixtures.samples import build_random_fixture
from parity.fixtures.verifier import VerifierSpec
from parity.prototypes.case import RecordedCase
from parity.prototypes.synthetic import write_case

SPEC = VerifierSpec(
    hidden_size=512,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    num_hidden_layers=3,
    intermediate_size=1792,
    vocab_size=32768,
    max_position_embeddings=32768,
    seed=11,
)
DRAFT_VOCABULARY = 8192
PROMPT_SHARE = 0.4


@dataclass(frozen=True)
class Shape:
    """One sample of ``length`` tokens a step, 60 % of them in the loss.

    ``dtype`` is ``fp32``, or ``bf16`` for autocast; ``threads`` counts CPU threads; ``device`` is ``cpu`` or ``cuda``.
    """

    algorithm: str
    length: int
    ttt_steps: int = 3
    dtype: str = "fp32"
    threads: int = 1
    device: str = "cpu"

    def __str__(self) -> str:
        words = [self.algorithm, f"T{self.length}", f"k{self.ttt_steps}", self.dtype, f"{self.threads}thread"]
        return "-".join(words + ([self.device] if self.device != "cpu" else []))

    @property
    def rows(self) -> int:
        """Tokens in the loss; a sample's last position never is, see :mod:`ports.training.data`."""
        return self.length - int(PROMPT_SHARE * self.length) - 1


ALGORITHMS = ("eagle3", "hass")
QUICK = [Shape(algorithm, length) for algorithm in ALGORITHMS for length in (256, 1024, 2048)]
FULL = [
    *(Shape(algorithm, length) for algorithm in ALGORITHMS for length in (256, 512, 1024, 2048, 4096, 8192, 16384)),
    *(Shape(algorithm, 1024, k) for algorithm in ALGORITHMS for k in (1, 2, 4, 5, 6, 7)),
    *(Shape(algorithm, length, dtype="bf16") for algorithm in ALGORITHMS for length in (1024, 2048)),
    *(Shape(algorithm, length, threads=2) for algorithm in ALGORITHMS for length in (1024, 2048)),
    *(
        Shape(algorithm, length, device="cuda", dtype="bf16")
        for algorithm in ALGORITHMS
        for length in (2048, 4096, 8192)
    ),
]
DENSE = ("original", "reference", "port eager", "speculators")
"""They hold several [heads, T, T] tensors a step."""
LONGEST_DENSE = 4096


def sides_of(shape: Shape, original: bool) -> list[str]:
    """The sides that can take a shape; ``original``: is there a checkout of the prototypes."""
    sides = ["original", "reference"] if (shape.dtype, shape.device) == ("fp32", "cpu") else []
    sides += ["speculators", "port chain"] if shape.algorithm == "eagle3" else []
    sides += ["port eager", "port"]
    dense = shape.length <= LONGEST_DENSE
    return [side for side in sides if (dense or side not in DENSE) and (original or side != "original")]


def build_case(shape: Shape, fixtures: Path, folder: Path, steps: int) -> RecordedCase:
    """A case below ``folder`` with a sample for each of ``steps`` steps, in one pass: it writes no checkpoint.

    Verifier and samples are made once in ``fixtures``.
    """
    fixture = fixtures / f"t{shape.length}_n{steps}"
    if not fixture.exists():
        sizes = {"lengths": (shape.length,) * steps, "draft_vocab_size": DRAFT_VOCABULARY}
        build_random_fixture(fixture, spec=SPEC, prompt_share=PROMPT_SHARE, **sizes)
    return write_case(folder, fixture, str(shape), algorithm=shape.algorithm, k=shape.ttt_steps, bs=1, epoch=0)
