"""A trainer's look at what its draft is worth: the evaluator, on the draft as it would be saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ports.training.settings import TrainingSettings


def acceptance_of(settings: TrainingSettings) -> Callable[[Path], float] | None:
    """From a draft's directory to its acceptance length on ``--val_prompts``, if there are any.

    Raises:
        InputError: a file that holds no prompts, or none that fits, before anything is trained.
    """
    file = settings.val_prompts
    if file is None:
        return None
    from ports.evaluate.measure import measure  # they are above the trainers, and open both kinds
    from ports.evaluate.prompts import family_of, read_files
    from ports.evaluate.verifier import longest_prompt

    longest = longest_prompt(settings.basepath, settings.val_tokens, settings.forward_num_total)
    read_files([file], settings.basepath, family_of(settings.tmpdir), longest)

    def decode(directory: Path) -> float:
        found = measure(directory, [file], verifier=settings.basepath, tokens=settings.val_tokens)
        return float(found["acceptance_length"])

    return decode
