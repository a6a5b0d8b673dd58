"""What both sides are given: a tiny verifier, records, settings and batches, all of them from the constants below.

``python -m sprout.cases DIR`` writes verifier, draft config and records, to train on by hand.
"""

from __future__ import annotations

import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from speculators.utils.loading import load_model_layers
from torch import Tensor

from parity import Case
from parity.fixtures.samples import build_random_fixture
from parity.fixtures.verifier import VerifierSpec
from ports.training.data import Batch, collate
from sprout.train import SproutSettings, build, build_dataset

SEED = 0
VERIFIER = VerifierSpec(
    hidden_size=32, num_hidden_layers=3, intermediate_size=48, vocab_size=61, bos_token_id=1, eos_token_id=2
)
DRAFT: dict[str, Any] = {"num_key_value_heads": 4, "rope_theta": 50000.0}
"""Where the draft's layer is configured unlike the verifier's: ``rope_theta``, ``num_key_value_heads``, ..."""

LENGTHS = (9, 5, 12, 7, 3, 10, 8, 6)
"""Tokens of every record."""

BATCH_SIZE = 2
PASSES = 2
STEPS = PASSES * len(LENGTHS) // BATCH_SIZE
LEARNING_RATE = 1e-3
TTT_STEPS = 3

_FOLDER = tempfile.TemporaryDirectory(prefix="sprout-")


@cache
def files() -> Path:
    """``verifier/``, ``draft_hass.json`` and ``data_hass/``, in a folder that goes with the process."""
    return write(Path(_FOLDER.name) / "case")


def write(folder: Path) -> Path:
    """The same files in a folder of their own, to train on by hand."""
    vocabulary = VERIFIER.vocab_size
    return build_random_fixture(
        folder, spec=VERIFIER, lengths=LENGTHS, draft=DRAFT, draft_vocab_size=vocabulary, seed=SEED
    )


def settings(**changes: Any) -> SproutSettings:
    """The training command's settings for this case: float32, the records in their order, no noise."""
    values: dict[str, Any] = {
        "basepath": str(files() / "verifier"),
        "configpath": str(files() / "draft_hass.json"),
        "tmpdir": files() / "data_hass",
        "cpdir": Path(_FOLDER.name) / "checkpoints",
        "bs": BATCH_SIZE,
        "epoch": PASSES - 1,
        "lr": LEARNING_RATE,
        "forward_num_total": TTT_STEPS,
        "noise": False,
        "shuffle": False,
        "num_workers": 0,
        "mixed_precision": "no",
        "records_check": "off",  # the records' states are random, not the verifier's
        "progress": False,
    }
    return SproutSettings(**{**values, **changes})


def batches() -> list[Batch]:
    """One pass of the training command's batches."""
    chosen = settings()
    dataset = build_dataset(chosen, build(chosen).config)
    starts = range(0, len(LENGTHS), BATCH_SIZE)
    return [collate([dataset[row] for row in range(first, first + BATCH_SIZE)]) for first in starts]


def case() -> Case:
    """What both sides run on."""
    return Case("sprout", batches(), SEED, STEPS)


def verifier_tables() -> tuple[Tensor, Tensor]:
    """The verifier's embedding and head, [V, h] each."""
    verifier = str(files() / "verifier")
    held = load_model_layers(["embed_tokens.weight", "lm_head.weight"], verifier)
    return held["embed_tokens.weight"], held.get("lm_head.weight", held["embed_tokens.weight"])


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
