"""Measure a draft: decode every prompt with it and without it, count as vLLM counts, and compare the tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ports.evaluate.acceptance import Turn, by_prompt, summary
from ports.evaluate.decode import Answer, Limits, decode, decode_speculatively
from ports.evaluate.drafter import Drafter, as_served, drafter_of, open_draft, read_vocabulary
from ports.evaluate.drafter import untrained as fresh_draft
from ports.evaluate.intervals import from_json
from ports.evaluate.plot import Panel, check_outputs, draw, write_json
from ports.evaluate.prompts import Prompt, family_of, read_files
from ports.evaluate.sampling import Choice, Sampling, choice_of
from ports.numerics import fix_numerics, numerics
from ports.progress import Work
from ports.training.online import checked_device
from ports.training.settings import TrainingSettings
from ports.verifier import trust
from ports.verifier.attention import longest_prompt
from ports.verifier.loading import load_verifier
from ports.verifier.tokenizer import end_tokens
from ports.verifier.trust import HELP

DEFAULT_CONCURRENCY, TOO_LONG = 8, "too long for the verifier"


def evaluate(
    verifier: Any,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    size: int,
    batch_size: int = DEFAULT_CONCURRENCY,
    choice: Choice | None = None,
) -> list[Answer]:
    """Decoding with proposals and, where it is greedy, without; ``batch_size`` prompts of about equal length at a time.

    Two runs draw other tokens, with a draft or without: there is nothing that one could be held against.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    found: dict[int, Answer] = {}
    compared = not isinstance(choice, Sampling)
    with Work("evaluation: answers", len(order) * (1 + compared)) as work:

        def tell(reached: float) -> None:
            work.at(work.done, work.done + reached)

        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            texts, plain = [prompts[index] for index in chosen], None
            if compared:
                plain = [answer.tokens for answer in decode(verifier, texts, limits, tell=tell)]
                work.add(len(texts))
            drafted = decode_speculatively(verifier, drafter, texts, limits, size, choice, plain, tell)
            work.add(len(texts))
            found.update(zip(chosen, drafted))
    return [found[index] for index in range(len(prompts))]


class Dtype(str, Enum):
    """Names of torch's precisions, or the verifier's own."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def measure(
    draft: Annotated[Path, typer.Argument(help="Speculators checkpoint of an Eagle3 or HASS draft")],
    prompts: Annotated[
        list[Path],
        typer.Option(
            help="held-out prompts, conversations or benchmarks: .txt, .jsonl or .json; several times: a row each. "
            "Of EAGLE's question.jsonl every turn of an entry is asked after the answer to the one before it"
        ),
    ],
    verifier: Annotated[str | None, typer.Option(help="default: the one that the checkpoint names")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="entries of each file; default: all")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="length of an answer at most")] = 128,
    speculative_tokens: Annotated[
        int | None, typer.Option(min=1, help="tokens in a proposal; default: as many as the checkpoint names")
    ] = None,
    max_concurrency: Annotated[int, typer.Option(min=1, help="prompts at a time")] = DEFAULT_CONCURRENCY,
    temperature: Annotated[
        float, typer.Option(help="draft and verifier draw their tokens; 0: both take the likeliest")
    ] = 0.0,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="go on past a token that ends an answer")] = False,
    untrained: Annotated[bool, typer.Option("--untrained", help="the same draft as its training would start")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of draws and untrained weights")] = 0,
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            help="folder of a vocabulary map: a HASS draft proposes these tokens, as speculator serve writes it"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="where both models run; default: cuda if there is one")] = "",
    dtype: Annotated[Dtype, typer.Option(help="precision of both models; auto: the verifier's own")] = Dtype.AUTO,
    chat_template: Annotated[
        str, typer.Option(help="chat family of conversations; default: as in the records that the draft was trained on")
    ] = "",
    contexts: Annotated[bool, typer.Option("--contexts", help="also by where in the text a proposal begins")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="draw the acceptance by position here: .svg or .png; needs matplotlib")
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=HELP)] = False,
    json: Annotated[Path | None, typer.Option(help="write the result here as JSON")] = None,
) -> dict[str, Any]:
    """Decode with a draft's proposals and count what the verifier accepts, as vLLM counts.

    Every figure has its 95 % interval over prompts; the turns of a dialogue are one.

    Every greedy answer is decoded without the draft too. Exit code 0: the tokens are the same but for near ties, which
    rounding decides, 1: they differ, 2: bad input.
    """
    check_outputs(json, plot)
    if trust_remote_code:
        trust.trust_remote_code()
    fix_numerics()
    place = checked_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    choice, model = choice_of(temperature, seed, place), open_draft(draft, verifier)
    chosen = None if vocabulary is None else read_vocabulary(vocabulary, model)
    attached = model.config.speculators_config
    name, size = attached.verifier.name_or_path, speculative_tokens or attached.proposal_methods[0].speculative_tokens
    family, longest = family_of(draft, chat_template), longest_prompt(name, max_new_tokens, size)
    entries = read_files(prompts, name, family, longest, limit)
    target = load_verifier(name, Dtype(dtype).value, place, head=True)
    limits = Limits(max_new_tokens, frozenset() if ignore_eos else end_tokens(target))
    drafter = drafter_of(as_served(fresh_draft(model, seed) if untrained else model, target), chosen)
    start = time.perf_counter()
    asked = ask(entries, longest, lambda texts: evaluate(target, drafter, texts, limits, size, max_concurrency, choice))
    result = {
        "draft": str(draft),
        "verifier": name,
        "algorithm": model.config.speculators_model_type,
        "untrained": untrained,
        "draft_vocab_size": drafter.config.vocab_size if drafter.kept is None else len(drafter.kept),
        "length": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "chat": family.model_dump(mode="json", exclude_defaults=True),
        **summary(asked, size, contexts),
        "files": _rows_by_file(prompts, asked, size, contexts),
        "numerics": numerics(),
        "seconds": round(time.perf_counter() - start, 3),
    }
    if json is not None:
        write_json(json, result)
    if plot is not None:
        draw(plot, acceptance_panel(result))
    return result


def acceptance_of(settings: TrainingSettings) -> Callable[[Path], float] | None:
    """From a draft's directory to its acceptance length on ``--val-prompts``, if a trainer has any.

    Raises:
        InputError: a file that holds no prompts, or none that fits, before anything is trained.
    """
    file, verifier, tokens = settings.val_prompts, settings.basepath, settings.val_tokens
    if file is None:
        return None
    longest = longest_prompt(verifier, tokens, settings.forward_num_total)
    read_files([file], verifier, family_of(settings.tmpdir), longest)
    return lambda directory: float(
        measure(directory, [file], verifier=verifier, max_new_tokens=tokens)["acceptance_length"]
    )


def _rows_by_file(files: Sequence[Path], asked: Sequence[Turn], size: int, contexts: bool) -> list[dict[str, Any]]:
    by_file = ([turn for turn in asked if turn.file == place] for place in range(len(files)))
    return [
        {"file": str(file), "name": name, **summary(turns, size, contexts), "by_prompt": by_prompt(turns, size)}
        for file, name, turns in zip(files, names(files), by_file)
    ]


def acceptance_panel(result: dict[str, Any]) -> Panel:
    """Acceptance by position with its intervals, a line for each file of prompts, of what :func:`measure` gave."""
    rows = {f"{row['name']}: {row['acceptance_length']:.2f} tokens a pass": row for row in result["files"]}
    title = f"{result['algorithm']} draft, temperature {result['temperature']:g}"
    places = range(1, result["speculative_tokens"] + 1)
    axes = {"xlabel": "position in the proposal", "ylabel": "accepted up to it", "ylim": (0, 1), "title": title}
    lines = {label: list(map(from_json, row["intervals"]["rate_per_position"])) for label, row in rows.items()}
    return Panel(places, lines, {**axes, "xticks": places})


def ask(
    files: Sequence[Sequence[Prompt]], longest: int, evaluate_all: Callable[[list[list[int]]], list[Answer]]
) -> list[Turn]:
    """Everything that the entries of ``files`` ask, in their order: first turns first, later ones after their answers.

    Args:
        files: the first prompts of each.
        longest: how many tokens a prompt may have.
        evaluate_all: answers prompts.
    """
    waiting = [Turn(file, entry, 0, prompt) for file, each in enumerate(files) for entry, prompt in enumerate(each)]
    asked: list[Turn] = []
    while waiting:
        for turn in waiting:
            turn.left_out = turn.left_out or (TOO_LONG if len(turn.prompt.ids) > longest else "")
        fitting = [turn for turn in waiting if not turn.left_out]
        for turn, answer in zip(fitting, evaluate_all([turn.prompt.ids for turn in fitting]) if fitting else ()):
            turn.answer = answer
        asked += waiting
        waiting = [turn.next() for turn in fitting if turn.prompt.ask_on]
    return sorted(asked, key=lambda turn: (turn.file, turn.entry, turn.turn))


def names(files: Sequence[Path]) -> list[str]:
    """What rows are called: EAGLE's benchmarks by their folders, others by their files."""
    return [file.absolute().parent.name if file.name == "question.jsonl" else file.name for file in files]
