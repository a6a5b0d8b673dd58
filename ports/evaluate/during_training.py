"""A trainer's look at what its draft is worth: the evaluator, on the draft as it would be saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ports.training.settings import TrainingSettings
from ports.training.verifier import open_tokenizer, verifier_config


def acceptance_of(settings: TrainingSettings) -> Callable[[Path], float] | None:
    """From a draft's directory to its acceptance length on ``--val_prompts``, if there are any.

    Raises:
        InputError: a file that holds no prompts, before anything is trained.
    """
    file = settings.val_prompts
    if file is None:
        return None
    from ports.evaluate.measure import measure  # it is above the trainers, and opens drafts of both kinds
    from ports.evaluate.prompts import family_of, read_prompts

    vocab_size = verifier_config(settings.basepath).vocab_size
    read_prompts(file, lambda: open_tokenizer(settings.basepath), vocab_size, family_of(settings.tmpdir))

    def decode(directory: Path) -> float:
        found = measure(directory, [file], verifier=settings.basepath, tokens=settings.val_tokens)
        return float(found["acceptance_length"])

    return decode
