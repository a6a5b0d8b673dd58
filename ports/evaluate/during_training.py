"""A trainer's look at what its draft is worth: the evaluator, on the draft as it would be saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ports.training.settings import TrainingSettings
from ports.training.verifier import open_tokenizer, verifier_config


def acceptance_of(settings: TrainingSettings) -> Callable[[Path], float] | None:
    """From a draft's directory to its acceptance length on ``--val_prompts``, if there are any.

    Raises:
        InputError: a file that holds no prompts, or none that fits, before anything is trained.
    """
    file = settings.val_prompts
    if file is None:
        return None
    from ports.evaluate.measure import check_lengths, measure  # they are above the trainers, and open both kinds
    from ports.evaluate.prompts import family_of, read_questions
    from ports.evaluate.verifier import longest_prompt

    vocab_size, family = verifier_config(settings.basepath).vocab_size, family_of(settings.tmpdir)
    entries = read_questions(file, lambda: open_tokenizer(settings.basepath), vocab_size, family)
    check_lengths([file], [entries], longest_prompt(settings.basepath, settings.val_tokens, settings.forward_num_total))

    def decode(directory: Path) -> float:
        found = measure(directory, [file], verifier=settings.basepath, tokens=settings.val_tokens)
        return float(found["acceptance_length"])

    return decode
