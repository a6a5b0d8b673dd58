"""Tables of the documentation that code writes, each between its two marks.

``python -m docs.tables`` writes all of them, ``python -m docs.tables flags`` one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo

from docs.scale import SCALE
from docs.served import SERVED
from docs.verifiers import TRIED, write
from parity.fixtures.architectures import ARCHITECTURES
from parity.fixtures.dialogues import Recording, recordings, system_message, word_tokenizer, write_dialogues
from ports.files import gigabytes
from ports.generate.chat import Encoded, Encoder, LossMask
from ports.generate.conversations import load_conversations
from ports.generate.families import load_family
from ports.spellings import NOW
from ports.training.settings import Eagle3Settings, TrainingSettings
from ports.verifier.interfaces import KNOWN

ROOT = Path(__file__).resolve().parents[1]


def flags() -> str:
    """Every flag of the trainers, its default and what it is for."""
    lines = ["| flag | default | |", "| --- | --- | --- |"]
    shown = {name: field for name, field in Eagle3Settings.model_fields.items() if NOW.get(name, name)}
    return "\n".join([*lines, *(_flag(name, field) for name, field in shown.items())])


def _flag(name: str, field: FieldInfo) -> str:
    alone = "" if name in TrainingSettings.model_fields else "Eagle3: "
    text = f"{alone}{field.description or ''}".replace("|", "\\|").replace("<n>", "N").replace("*", "\\*")
    return f"| `--{(field.alias or name).replace('_', '-')}` | {_default(field)} | {text} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value: Any = field.get_default(call_default_factory=True)
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None or value == [] else f"`{value}`"


class Difference(NamedTuple):
    """Tokens of one script's samples: all of them, those in each mask, and those in one mask only."""

    script: str
    tokens: int
    prototype: int
    exact: int
    only_prototype: int
    only_exact: int


def masks() -> str:
    """How the prototypes' loss masks differ from exact ones on the recorded dialogues."""
    names = ("script", "tokens", "in the prototype's mask", "answers", "only prototype", "only exact")
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in differences()])


def differences() -> list[Difference]:
    """One row a script."""
    return [_difference(recording) for recording in recordings()]


def _difference(recording: Recording) -> Difference:
    recorded = [on for sample in recording.samples for on in sample["loss_mask"]]
    exact = [on for one in encode_recorded(recording, LossMask.EXACT) for on in one.loss_mask]
    pairs = list(zip(recorded, exact, strict=True))
    return Difference(recording.name, len(pairs), sum(recorded), sum(exact), pairs.count((1, 0)), pairs.count((0, 1)))


def encode_recorded(recording: Recording, loss_mask: LossMask) -> list[Encoded]:
    """The dialogues that a script read, encoded by the port."""
    encoder, shares = encoder_of(recording, loss_mask), recording.dataset == "sharegpt"
    with TemporaryDirectory() as folder:
        file = write_dialogues(recording.dataset, Path(folder) / "dialogues.json")
        rows = load_conversations("sharegpt" if shares else "ultrachat", str(file), "sft")
        return [encoder(rows.messages(index)) for index in range(len(rows))]


def encoder_of(recording: Recording, loss_mask: LossMask) -> Encoder:
    """As the script's."""
    family = load_family(recording.family)
    if recording.family == "mistral":
        family = family.model_copy(update={"system": system_message(recording)})
    leading_space = recording.dataset == "sharegpt"
    return Encoder(word_tokenizer(recording.family), family, loss_mask, leading_space=leading_space)


def verifiers() -> str:
    """The tiny verifiers: what :mod:`docs.verifiers` found, vLLM's classes say, and :mod:`docs.served` found."""
    known, tried, served = (json.loads(file.read_text()) for file in (KNOWN, TRIED, SERVED))
    names = ["verifier", "class", "trains", "evaluates", f"EAGLE-3 in vLLM {known['version']}"]
    names.append(f"tried with vLLM {served['version']} on the CPU")
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for name, each in ARCHITECTURES.items():
        (kind,) = each.config["architectures"]
        found = [tried[name]["trains"], tried[name]["evaluates"], "yes" if known["eagle3"][kind] else "no"]
        found.append(served["trials"].get(name, "not tried"))
        lines.append(f"| {name} | `{kind}` | {' | '.join(cell.replace('|', '/') for cell in found)} |")
    return "\n".join(lines)


def scale() -> str:
    """What :mod:`docs.scale` counted."""
    lines = ["| verifier | its weights, without the head | records on disk | training, a device |", "|" + " --- |" * 4]
    for name, sizes in json.loads(SCALE.read_text()).items():
        lines.append(
            f"| {name} | {' | '.join(gigabytes(sizes[part]) for part in ('verifier', 'records', 'training'))} |"
        )
    return "\n".join(lines)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "architectures.md": ("verifiers", verifiers),
    "training.md": ("flags", flags),
    "scale.md": ("scale", scale),
    "data.md": ("masks", masks),
}


def updated(text: str, mark: str, table: Callable[[], str]) -> str:
    """``text`` with the table of now between its marks."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n\n{table()}\n\n{end}{rest.partition(end)[2]}"


def pages(marks: Sequence[str] = ()) -> dict[Path, str]:
    """What every page with such a table should hold now, or those of the tables of these ``marks`` alone."""
    files = {ROOT / "docs" / name: table for name, table in TABLES.items() if not marks or table[0] in marks}
    return {page: updated(page.read_text(), *table) for page, table in files.items()}


if __name__ == "__main__":
    if not sys.argv[1:] or "verifiers" in sys.argv:
        write()
    for path, content in pages(sys.argv[1:]).items():
        path.write_text(content)
