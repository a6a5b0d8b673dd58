"""``speculator show``: what a directory holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from ports import flags
from ports.commands import hushed, printable_lines
from ports.draft.card import CARD, RUN, Names, draft_facts, readable
from ports.errors import InputError
from ports.files import read_json
from ports.generate.__main__ import print_dialogue
from ports.training.checkpoint import CONFIG, STATE, read_state
from ports.training.records import GENERATION, list_records, read_record
from ports.verifier.config import verifier_config
from ports.verifier.tokenizer import open_tokenizer

FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
HERE = "a run of speculator draft, a draft or checkpoint, or records"


def run(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help=HERE)],
    verifier: Annotated[str | None, typer.Option(help="of records: reads their first dialogues")] = None,
    rows: Annotated[int, typer.Option(min=1, help="dialogues to print")] = 3,
) -> int:
    """Say what a directory holds: a run and its draft's card, a draft or checkpoint, or records.

    Of records with --verifier also the first dialogues, what is in the loss in bold green.
    """
    kind = next((tell for file, tell in KINDS.items() if (directory / file).is_file()), None)
    if kind is None:
        raise InputError(directory, "DIR", "no " + ", ".join(KINDS), HERE)
    console = Console()
    with readable(directory):
        page = kind(directory)
    console.print(Markdown(printable_lines(page)))
    if kind is _records and verifier is not None:
        tokenizer, vocab_size = open_tokenizer(verifier), verifier_config(verifier).vocab_size
        for number, file in enumerate(list_records(directory)[:rows]):
            record = read_record(file, {}, vocab_size)
            print_dialogue(console, tokenizer, number, record["input_ids"].tolist(), record["loss_mask"].tolist())
    return 0


def _run(out: Path) -> str:
    page = Names(out).render("run.md.j2", here={each.name for each in out.iterdir()})
    return page + (_draft(out / "draft") if (out / "draft").is_dir() else "")


def _draft(folder: Path) -> str:
    """Its card; where nobody has written one, what its config says."""
    if (folder / CARD).is_file():
        return FRONT.sub("", (folder / CARD).read_text(encoding="utf-8", errors="replace"))
    config = read_json(folder / CONFIG, "config", "a draft's")
    verifier = config["speculators_config"]["verifier"]["name_or_path"]
    state = read_state(folder) if (folder / STATE).is_file() else None
    facts = draft_facts(folder, verifier)
    return Names(folder.parent).render("draft.md.j2", **facts, trusted=False, state=state)


def _records(folder: Path) -> str:
    found = read_json(folder / GENERATION, "manifest", "of records")
    return Names(folder).render("records.md.j2", records=found, files=len(list_records(folder)))


KINDS: dict[str, Callable[[Path], str]] = {RUN: _run, CONFIG: _draft, GENERATION: _records}
"""By the file that tells it."""

command = flags.function_command(hushed(run))
