"""``speculator check``: a draft from its files to served tokens, step by step; the first fault is explained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console

from ports import flags
from ports.check.accepted import (
    expected,
    look_at_acceptance,
    look_at_contexts,
    look_at_serving,
    prompts_of,
)
from ports.check.converted import look_at_conversion
from ports.check.files import look_at_files
from ports.check.findings import Finding, finding_of, left_out
from ports.check.trained import HELD, look_at_forwards, look_at_records, records_of
from ports.commands import hushed, printable
from ports.evaluate.decode import Answer, Limits
from ports.evaluate.drafter import as_served, drafter_of
from ports.evaluate.measure import evaluate
from ports.evaluate.plot import check_outputs, write_json
from ports.evaluate.prompts import family_of, read_files
from ports.numerics import fix_numerics, numerics
from ports.training.checkpoint import check_checkpoint
from ports.training.online import checked_device
from ports.verifier.attention import longest_prompt
from ports.verifier.loading import load_verifier
from ports.verifier.tokenizer import end_tokens

PROMPTS = 16
"""Asked of the records, where no file of prompts is given."""

FILES = "open the directory that training saved, with the verifier it was trained for"
CONVERT = "speculators convert ORIGINAL --algorithm eagle3 --verifier MODEL opens them"
STATES = "make the records again with this verifier: speculator records"
NO_RECORDS = "no records", "--records DIR: what the draft was trained on"
MARKS = {"ok": "ok    ", "fault": "FAULT ", "left out": "-     "}


def run(
    draft: Annotated[Path, typer.Argument(help="Speculators checkpoint of an Eagle3 or HASS draft")],
    verifier: Annotated[str | None, typer.Option(help="default: the one that the checkpoint names")] = None,
    records: Annotated[Path | None, typer.Option(help="what the draft was trained on")] = None,
    prompts: Annotated[
        list[Path] | None, typer.Option(help="asked of draft and verifier; default: what 16 of the records ask")
    ] = None,
    converted_from: Annotated[
        Path | None, typer.Option(help="the EAGLE or SpecForge checkpoint that a converter made the draft from")
    ] = None,
    answers: Annotated[
        Literal["own", "given"],
        typer.Option(help="who gave the records' answers; given: not held to what they promise"),
    ] = "own",
    limit: Annotated[int, typer.Option(min=2, help="entries of each file at most")] = 64,
    held: Annotated[int, typer.Option(min=1, help="records that are computed again, spread over all")] = HELD,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="length of an answer at most")] = 64,
    device: Annotated[str, typer.Option(help="default: cuda if there is one")] = "",
    json: Annotated[Path | None, typer.Option(help="write what was found here as JSON")] = None,
) -> int:
    """Check a draft from its files to served tokens: files, records, training, acceptance, context, serving.

    The first fault is explained, with what to do. Exit code 0: no fault, 1: a fault, 2: bad input.
    """
    check_outputs(json, None)
    check_checkpoint(draft, "DRAFT")
    fix_numerics()
    found, console = [], Console(highlight=False)
    looked = check(
        draft, verifier, records, prompts or [], limit, max_new_tokens, device, held, converted_from, answers == "own"
    )
    for finding in looked:
        found.append(finding)
        console.print(
            f"{MARKS[finding.state]} {finding.step:9} {printable(finding.figure)}", markup=False, soft_wrap=True
        )
    wrong = next((each for each in found if each.state == "fault"), None)
    if json is not None:
        write_json(json, {"draft": str(draft), "findings": [asdict(each) for each in found], "numerics": numerics()})
    for each in found:
        if each is wrong or each.state == "left out":
            console.print(f"{each.step}: {printable(each.advice)}", markup=False, soft_wrap=True)
    return int(wrong is not None)


def check(
    draft: Path,
    verifier: str | None,
    records: Path | None,
    prompts: list[Path],
    limit: int = 64,
    tokens: int = 64,
    device: str = "",
    held: int = HELD,
    original: Path | None = None,
    own: bool = True,
) -> Iterator[Finding]:
    """Every step's finding, one after the other; none after one that leaves nothing to look at.

    What records promise is of their answers: it is held against acceptance where those are the verifier's ``own``.

    Raises:
        InputError: prompts that cannot be read.
    """
    opened: list[Any] = []

    def files() -> Finding:
        model, finding = look_at_files(draft, verifier)
        opened.append(model)
        return finding

    yield finding_of("files", FILES, files)
    if not opened:
        return
    model, place = opened[0], checked_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    size = model.config.speculators_config.proposal_methods[0].speculative_tokens
    if original is not None:
        yield finding_of("converted", CONVERT, lambda: look_at_conversion(model, draft, original, size))
    dataset = None if records is None else records_of(model, records, place)
    yield from _of_records(model, dataset, place, size, held)
    promised = None if dataset is None else expected(model, dataset, size, held)
    asked = _asked(draft, model, dataset, prompts, limit, tokens, size)
    del dataset  # and a verifier with it that computed what records of ids do not hold
    if not asked:
        yield left_out("accepted", "no prompts", "--prompts FILE, or --records DIR")
        return
    answers = _answers(model, asked, tokens, size, place)
    yield look_at_acceptance(answers, size, promised if own and not prompts else None)
    positions = getattr(model.config.transformer_layer_config, "max_position_embeddings", None)
    yield look_at_contexts(asked, answers, positions)
    yield finding_of(
        "served", "see docs/serving.md", lambda: look_at_serving(draft, model, asked, answers, size, tokens)
    )


def _of_records(model: Any, dataset: Any, place: torch.device, size: int, held: int) -> Iterator[Finding]:
    if dataset is None:
        yield left_out("records", *NO_RECORDS)
        yield left_out("trained", *NO_RECORDS)
        return
    yield finding_of("records", STATES, lambda: look_at_records(model, dataset, place, held))
    yield finding_of("trained", STATES, lambda: look_at_forwards(model, dataset, size))


def _asked(
    draft: Path, model: Any, dataset: Any, prompts: list[Path], limit: int, tokens: int, size: int
) -> list[list[int]]:
    name = model.config.speculators_config.verifier.name_or_path
    longest = longest_prompt(name, tokens, size)
    if prompts:
        entries = read_files(prompts, name, family_of(draft), longest, limit)
        return [prompt.ids for each in entries for prompt in each if len(prompt.ids) <= longest]
    found = [] if dataset is None else prompts_of(dataset, PROMPTS)
    return [ids for ids in found if len(ids) <= longest]


def _answers(model: Any, asked: list[list[int]], tokens: int, size: int, place: torch.device) -> list[Answer]:
    """Greedy ones, in the verifier's own precision."""
    target = load_verifier(model.config.speculators_config.verifier.name_or_path, "auto", place, head=True)
    limits = Limits(tokens, end_tokens(target))
    return evaluate(target, drafter_of(as_served(model, target)), asked, limits, size)


command = flags.function_command(hushed(run))
