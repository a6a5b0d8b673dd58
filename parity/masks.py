"""How the prototypes' loss masks differ from exact ones on the recorded dialogues, as the table in ``docs/data.md``."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from parity.fixtures.dialogues import Recording, recordings, system_message, word_tokenizer, write_dialogues
from ports.generate.conversations import load_conversations
from ports.generate.encode import Encoded, Encoder, LossMask
from ports.generate.families import load_family

PAGE = Path("docs/data.md")
BEGIN, END = "<!-- masks -->", "<!-- /masks -->"


class Difference(NamedTuple):
    """Tokens of one script's samples: all of them, those in each mask, and those in one mask only."""

    script: str
    tokens: int
    prototype: int
    exact: int
    only_prototype: int
    only_exact: int


def encode_recorded(recording: Recording, loss_mask: LossMask) -> list[Encoded]:
    """The dialogues that a script read, encoded by the port."""
    family = load_family(recording.family)
    if recording.family == "mistral":
        family = family.model_copy(update={"system": system_message(recording)})
    shares = recording.dataset == "sharegpt"
    encoder = Encoder(word_tokenizer(recording.family), family, loss_mask, leading_space=shares)
    with TemporaryDirectory() as folder:
        file = write_dialogues(recording.dataset, Path(folder) / "dialogues.json")
        rows = load_conversations("sharegpt" if shares else "ultrachat", str(file), "sft")
        return [encoder(rows.messages(index)) for index in range(len(rows))]


def differences() -> list[Difference]:
    """One row a script."""
    return [_difference(recording) for recording in recordings()]


def _difference(recording: Recording) -> Difference:
    recorded = [on for sample in recording.samples for on in sample["loss_mask"]]
    exact = [on for one in encode_recorded(recording, LossMask.EXACT) for on in one.loss_mask]
    pairs = list(zip(recorded, exact, strict=True))
    return Difference(recording.name, len(pairs), sum(recorded), sum(exact), pairs.count((1, 0)), pairs.count((0, 1)))


def as_table() -> str:
    """The rows as Markdown."""
    names = ("script", "tokens", "in the prototype's mask", "answers", "only prototype", "only exact")
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in differences()])


def updated(page: str) -> str:
    """``page`` with the table of now between its two marks."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{as_table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
