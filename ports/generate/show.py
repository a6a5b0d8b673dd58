"""Print who is supervised, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ports.generate.conversations import load_conversations
from ports.generate.encode import Encoded
from ports.generate.prepare import build_encoder
from ports.generate.settings import GenerationSettings
from ports.training.verifier import open_tokenizer

ON, OFF = "bold green", "dim"


def show(settings: GenerationSettings, rows: int, console: Console) -> None:
    """The first ``rows`` dialogues: their text with the answers in colour, and a table of their tokens.

    Raises:
        InputError: no such data, tokenizer or family.
        ConversationError: one of the dialogues cannot be used.
    """
    tokenizer = open_tokenizer(settings.model_path)
    encoder = build_encoder(settings, tokenizer)
    conversations = load_conversations(settings.dataset, settings.data_path, settings.split)
    for number in range(min(rows, len(conversations))):
        encoded = encoder(conversations.messages(number))
        words = [tokenizer.decode([token]) for token in encoded.ids]
        share = f"{sum(encoded.loss_mask)} of {len(encoded.ids)} tokens in the loss"
        console.rule(f"dialogue {number}: {share}")
        console.print(as_text(words, encoded.loss_mask))
        console.print(as_table(encoded, words))


def as_text(words: Sequence[str], mask: Sequence[int]) -> Text:
    """The dialogue as it is tokenized."""
    return Text.assemble(*((word, ON if on else OFF) for word, on in zip(words, mask)))


def as_table(encoded: Encoded, words: Sequence[str]) -> Table:
    """Row p of training: its token, whether it is in the mask, and what each alignment has the draft predict there.

    Row p reads x[p+1] and predicts x[p+2]; the prototypes' alignment takes it if x[p] is in the mask, the chain's if
    x[p+1] is.
    """
    table = Table("row", "id", "token", "mask", "prototype predicts", "chain predicts")
    shown = [repr(word)[1:-1] for word in words]
    for p, (token, on) in enumerate(zip(encoded.ids, encoded.loss_mask)):
        cells = [
            str(p),
            str(token),
            shown[p],
            str(on),
            _predicted(shown, encoded, p, p),
            _predicted(shown, encoded, p, p + 1),
        ]
        table.add_row(*(Text(cell) for cell in cells), style=ON if on else OFF)
    return table


def _predicted(words: Sequence[str], encoded: Encoded, row: int, decides: int) -> Any:
    on = decides < len(words) and encoded.loss_mask[decides] and row < len(words) - 1
    return "" if not on else words[row + 2] if row + 2 < len(words) else "(end)"
