#!/usr/bin/env python3
"""From conversations to acceptance, on two cores: train an Eagle3 and a HASS draft for a tiny Llama and measure them.

    python examples/tiny_llama.py runs/tiny

The shipped conversations are divided: a tiny Llama reads all but the last ten, both drafts are trained on its features
of the same ones and of its own answers to them, and the held-out ten are the prompts. Exit code 0: every draft reaches
1.5 times the acceptance length of its untrained self; 1: one does not, or changed a token; 2: bad input.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from parity.fixtures.conversations import Message, load_conversations
from parity.fixtures.features import load_verifier
from parity.fixtures.folder import new_folder, write_json
from parity.fixtures.language import build_reader
from parity.fixtures.samples import Sample, sample_of, text_samples, write_training
from parity.fixtures.tokenizer import build_tokenizer
from parity.fixtures.trainer import train_draft
from parity.fixtures.verifier import VerifierSpec
from ports.commands import run_app
from ports.errors import InputError
from ports.evaluate.decode import Limits, decode
from ports.evaluate.measure import measure
from ports.evaluate.prompts import read_questions
from ports.generate.chat import Encoder
from ports.generate.families import ChatFamily
from ports.verifier.tokenizer import open_tokenizer

SPEC = VerifierSpec(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_hidden_layers=8)
DRAFT_VOCAB_SIZE = 384
TTT_STEPS, ANSWER = 3, 96
GOAL = 1.5

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def run(
    output: Annotated[Path, typer.Argument(help="data, checkpoints and result.json go here; old data are used again")],
    algorithm: Annotated[list[str], typer.Option(help="eagle3, hass or both")] = ["eagle3", "hass"],  # noqa: B006
    held_out: Annotated[int, typer.Option(min=1, help="conversations at the end that are prompts only")] = 10,
    reading_steps: Annotated[int, typer.Option(min=0, help="optimizer steps of the verifier")] = 50,
    passes: Annotated[int, typer.Option(min=1, help="passes of each draft over the samples")] = 12,
    tokens: Annotated[int, typer.Option(min=1, help="length of the answers that are measured")] = 64,
) -> None:
    start = time.perf_counter()
    output = output.resolve()
    data = prepare(output / "data", held_out, reading_steps)
    drafts = [train_draft(data, output / name, name, f"draft_{name}.json", passes, TTT_STEPS) for name in algorithm]
    rows = [measure_both(draft, data, tokens) for draft in drafts]
    write_json(output / "result.json", rows)
    report(rows, time.perf_counter() - start)
    good = all(row["ratio"] >= GOAL and row["trained"]["lossless"] and row["untrained"]["lossless"] for row in rows)
    raise typer.Exit(0 if good else 1)


def prepare(data: Path, held_out: int, reading_steps: int) -> Path:
    """The verifier, the samples of both algorithms and the held-out prompts; what lies there is used again.

    The samples are made by :mod:`parity.fixtures.features`; anything that writes the same files may take its place.
    """
    recipe = {"held_out": held_out, "reading_steps": reading_steps, "seed": SPEC.seed}
    if data.exists():
        found = json.loads((data / "recipe.json").read_text()) if (data / "recipe.json").exists() else "no recipe.json"
        if found != recipe:
            raise InputError(data, "recipe", found, recipe)
        return data
    conversations = load_conversations()
    seen = len(conversations) - held_out
    if seen < 2:
        raise InputError("command line", "--held-out", held_out, f"at most {len(conversations) - 2}")
    with new_folder(data) as folder:
        write_prompts(folder / "seen.jsonl", conversations[:seen])
        write_prompts(folder / "held_out.jsonl", conversations[seen:])
        tokenizer = open_tokenizer(str(build_tokenizer(folder / "tokenizer")))
        encode = Encoder(tokenizer, ChatFamily())
        texts = [encode(dialogue).ids for dialogue in conversations[:seen]]
        verifier = build_tokenizer(build_reader(SPEC, folder / "verifier", texts, reading_steps))
        samples = [*text_samples(verifier, seen), *answer_samples(verifier, folder / "seen.jsonl")]
        write_training(folder, samples, SPEC, None, DRAFT_VOCAB_SIZE)
        write_json(folder / "recipe.json", recipe)
    return data


def write_prompts(file: Path, conversations: list[list[Message]]) -> None:
    """One conversation a line."""
    file.write_text("".join(f"{json.dumps({'messages': dialogue})}\n" for dialogue in conversations))


def answer_samples(directory: Path, prompts: Path) -> list[Sample]:
    """What the verifier answers itself, which is what its draft will have to foresee."""
    verifier, tokenizer = load_verifier(directory)
    ids = [prompt.ids for prompt in read_questions(prompts, lambda: tokenizer, SPEC.vocab_size)]
    ids = [prompt for prompt in ids if len(prompt) + ANSWER <= SPEC.max_position_embeddings]
    answers = decode(verifier, ids, Limits(ANSWER))
    pairs = [(prompt, answer.tokens) for prompt, answer in zip(ids, answers)]
    return [sample_of(verifier, [*prompt, *tokens], [0] * len(prompt) + [1] * len(tokens)) for prompt, tokens in pairs]


def measure_both(draft: Path, data: Path, tokens: int) -> dict[str, Any]:
    """The draft and its untrained self on the held-out prompts."""
    asked = {"draft": draft, "prompts": [data / "held_out.jsonl"], "max_new_tokens": tokens, "ignore_eos": True}
    trained, untrained = measure(**asked), measure(**asked, untrained=True)
    ratio = trained["acceptance_length"] / untrained["acceptance_length"]
    return {"ratio": ratio, "trained": trained, "untrained": untrained}


def report(rows: list[dict[str, Any]], seconds: float) -> None:
    """A line a draft."""
    table = Table(title=f"acceptance on held-out conversations, after {seconds:.0f} s")
    for name in ("draft", "untrained", "trained", "ratio", "rate per position", "lossless"):
        table.add_column(name)
    for row in rows:
        trained, untrained = row["trained"], row["untrained"]
        lengths = [f"{result['acceptance_length']:.3f}" for result in (untrained, trained)]
        rates = " ".join(f"{rate:.3f}" for rate in trained["rate_per_position"])
        lossless = str(trained["lossless"] and untrained["lossless"])
        table.add_row(trained["algorithm"], *lengths, f"{row['ratio']:.2f}", rates, lossless)
    Console().print(table)


def main() -> None:
    """Entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
