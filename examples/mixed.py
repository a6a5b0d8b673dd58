"""One draft for several kinds of text: prompts of sums, instructions and code, none of them near a benchmark's.

``results --mixed`` of smollm2.py: the model's own answers, a quarter of them drawn as its card says, an Eagle3 draft,
its acceptance on EAGLE's six benchmarks, and tokens per second in vLLM beside lookups that need no draft.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from study import BENCHMARKS, RATE, Study, cores, read_lines, table, two_lanes

from ports.errors import InputError
from ports.evaluate.intervals import from_json

DIALOGUES, PASSES, PROMPTS = 6000, 4, 40
"""Of a run that took two cores four and a half hours (docs/results.md); entries of a benchmark."""

KINDS = {
    "gsm8k": ("grade_school_math/data/train.jsonl",),
    "alpaca": ("alpaca_data.json", "data/random/random_9k.json"),
    "codealpaca": ("data/new_codealpaca.json",),
}
"""The first of these files that a checkout has; of Alpaca's also the 9,229 drawn ones of gpt4life/alpagasus."""

GRAM = 13
"""Words that no prompt shares with a benchmark's question, one after the other; all of a shorter one."""

EVERY, DRAWN = 4, ("--temperature", 0.2, "--top-p", 0.9)
"""How many answers one is drawn of, and how: as the model's card says."""

BATCH, HELD_OUT, SERVED, K = 4, 24, 16, 3
"""Samples of a step; prompts that only measure; prompts that vLLM is timed on; tokens of a proposal."""

LANES = (("mt_bench", "alpaca"), ("gsm8k", "humaneval", "qa", "sum"))
"""Which benchmarks one core measures and which the other: about as many tokens."""

NAME = "eagle3, mixed"
Grams = set[tuple[str, ...]]


def grams(text: str) -> Grams:
    """Every :data:`GRAM` words in a row, in lower case without punctuation; of fewer words the whole text."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[first : first + GRAM]) for first in range(max(1, len(words) - GRAM + 1))} - {()}


def questions_in(files: Iterable[Path]) -> Grams:
    """Of every turn and reference answer in EAGLE's question files."""
    rows = [json.loads(line) for file in files for line in "".join(read_lines(file)).strip().split("\n")]
    return {gram for row in rows for text in (*row["turns"], *row.get("reference", ())) for gram in grams(text)}


def prompts_in(checkout: Path, kind: str) -> list[tuple[str, str]]:
    """Every different prompt of a checkout, and its question or instruction alone.

    Raises:
        InputError: none of the files of its kind is there.
    """
    found = next((checkout / name for name in KINDS[kind] if (checkout / name).is_file()), checkout / KINDS[kind][0])
    text = "".join(read_lines(found))
    rows = json.loads(text) if found.suffix == ".json" else list(map(json.loads, text.strip().split("\n")))
    asked = [(row.get("question") or row["instruction"], row.get("input", "")) for row in rows]
    return list(dict.fromkeys((f"{first}\n\n{given}" if given else first, first) for first, given in asked))


def checked(checkouts: dict[str, Path | None]) -> dict[str, Path]:
    """All of them.

    Raises:
        InputError: one was not named.
    """
    for kind, checkout in checkouts.items():
        if checkout is None:
            raise InputError("command line", f"--{kind}", "nothing", "a checkout, which --mixed draws prompts from")
    return {kind: checkout for kind, checkout in checkouts.items() if checkout is not None}


def draw(checkouts: dict[str, Path], banned: Grams, dialogues: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Lines of prompts, the kinds in turns, and by kind how many there were, were near a benchmark's, and are drawn.

    Raises:
        InputError: a kind has too few.
    """
    drawn, told = {}, []
    for number, (kind, checkout) in enumerate(checkouts.items()):
        there, share = prompts_in(checkout, kind), len(range(number, dialogues, len(checkouts)))
        far = [text for text, first in there if not (grams(text) | grams(first)) & banned]
        if len(far) < share:
            raise InputError(checkout, "prompts", f"{len(far):,} that no benchmark has", f"{share:,} of this kind")
        drawn[kind] = random.Random(f"{seed} {kind}").sample(far, share)
        told.append([kind, *(f"{count:,}" for count in (len(there), len(there) - len(far), share))])
    kinds = list(checkouts)
    mixed = ((kinds[row % len(kinds)], row // len(kinds)) for row in range(dialogues))
    rows = ({"kind": kind, "messages": [{"role": "user", "content": drawn[kind][row]}]} for kind, row in mixed)
    return [json.dumps(row) + "\n" for row in rows], told


@dataclass(frozen=True)
class Mixed(Study):
    """One draft in ``out``, trained for so many ``passes``, and what is measured of it."""

    passes: int

    def answers(self, lines: Sequence[str]) -> Path:
        """The model's own, in the order of the prompts: of every kind one of :data:`EVERY` is drawn."""
        names = ["drawn" if row // len(KINDS) % EVERY == 0 else "greedy" for row in range(len(lines))]
        given: dict[str, Iterator[str]] = {}
        for name, words in {"greedy": (), "drawn": DRAWN}.items():
            asked, file = self.out / f"questions_{name}.jsonl", self.out / f"answers_{name}.jsonl"
            asked.write_text("".join(line for line, each in zip(lines, names) if each == name))
            said = ("--verifier", self.model, "--data", asked, "--out", file, "--copies", self.processes)
            self.run(f"answers, {name}", "answers", *said, *words)
            given[name] = iter(read_lines(file))
        answers = self.out / "answers.jsonl"
        answers.write_text("".join(next(given[name]) for name in names))
        return answers

    @property
    def processes(self) -> int:
        """That answer, record and train beside each other."""
        return min(2, len(cores()))

    def draft(self, answers: Path) -> Path:
        """Trained by one command, which keeps the checkpoint that expects most on held-out records of all kinds."""
        run = self.folder(NAME)
        data = ("--data", answers, "--answers", "given", "--held-out", HELD_OUT)
        shared = ("--copies", self.processes, "--num-processes", self.processes, "--batch-size", BATCH)
        rate = ("--lr", RATE, "--epochs", self.passes, "--mixed-precision", self.mixed_precision)
        words = ("--verifier", self.model, *data, *shared, *rate, "--out", run)
        self.run(NAME, "draft", *words, writes=run / "evaluation.json")
        return run / "draft"

    def measured(self, draft: Path) -> dict[str, Any]:
        """Acceptance on every benchmark, two at a time; what fails ends the command when all else is done."""
        files = dict(zip(BENCHMARKS, self.files))
        lanes = two_lanes()
        found = {
            name: lane(self.benchmark, name, files[name], draft) for lane, names in zip(lanes, LANES) for name in names
        }
        try:
            wait(found.values())  # nothing goes on after this
        finally:
            for lane in lanes:
                lane.end()
        return {name: found[name].result() for name in BENCHMARKS}

    def benchmark(self, name: str, file: Path, draft: Path) -> dict[str, Any]:
        """Acceptance on one of them."""
        kept = self.folder(NAME) / f"{name}_{self.prompts}_{self.tokens}.json"
        words = ("--prompts", file, "--speculative-tokens", K, *self.limits)
        return self.result_of(f"{NAME}: {name}", kept, "evaluate", draft, *words)

    def served(self, draft: Path, name: str) -> dict[str, Any]:
        """vLLM's tokens per second on a benchmark, one request in flight: with the draft, without, and by lookup."""
        file = self.folder(NAME) / f"vllm_{name}_{self.prompts}_{self.tokens}_{self.rounds}.json"
        limit = ("--limit", min(SERVED, self.prompts), *self.limits[2:])
        words = ["--prompts", self.files[BENCHMARKS.index(name)], *limit, "--rounds", self.rounds, "--no-evaluator"]
        words += ["--max-concurrency", 1, "--speculative-tokens", K, "--beside", "ngram"]
        words += ["--beside", "suffix"] if find_spec("arctic_inference") is not None else []
        return self.result_of(f"{NAME}: vLLM on {name}", file, "bench", draft, *words)

    def page(self, lines: Sequence[str], told: list[list[str]], sizes: str) -> str:
        """Everything that is to be done and is not, and all of it as Markdown."""
        with patch.dict(os.environ, OMP_NUM_THREADS=str(max(1, len(cores()) // self.processes))):  # copies share them
            draft = self.draft(self.answers(lines))
        found = self.measured(draft)
        names = ("mt_bench", "gsm8k") if find_spec("vllm") is not None else ()
        served = [row for name in names for row in speeds(name, self.served(draft, name))]
        seen = [row[1:] for row in self.training(NAME, NAME, BATCH)]
        sections = {
            "Prompts; what is near a benchmark's is never trained on:": (("kind", "there", "near", "drawn"), told),
            "Expected acceptance on held-out records:": (("passes", "tokens seen, about", "expected"), seen),
            f"Acceptance, k = {K}; {sizes}:": (ACCEPTED, [[name, *length_of(each)] for name, each in found.items()]),
            **({"vLLM, one request in flight:": (SPEEDS, served)} if served else {}),
            "Minutes, two at a time or on both cores:": (("command", "minutes"), self.minutes()),
        }
        return "\n".join(
            line for title, (head, rows) in sections.items() for line in (title, "", *table(head, rows), "")
        )


ACCEPTED = ("benchmark", "tokens", "acceptance length, 95 %", "rates by position", "other than plain decoding's")
SPEEDS = ("benchmark", "proposed by", "tokens per second", "times plain, 95 %", "acceptance length", "other answers")


def length_of(found: dict[str, Any]) -> list[str]:
    """A row of acceptance."""
    other = "none" if found["lossless"] else "some"
    ties = f" but for {found['near_ties']} near ties" if found["near_ties"] else ""
    length, rates = from_json(found["intervals"]["acceptance_length"]), found["rate_per_position"]
    return [f"{found['tokens']:,}", f"{length:.3f}", ", ".join(f"{rate:.3f}" for rate in rates), other + ties]


def speeds(name: str, found: dict[str, Any]) -> list[list[str]]:
    """Rows of vLLM's."""
    return [
        [
            name,
            row["by"] or ("the draft" if row["speculative_tokens"] else "nobody"),
            f"{row['tokens_per_second']:.1f}",
            format(from_json(row["intervals"]["times_plain"]), ".2f"),
            f"{row['acceptance_length']:.3f}",
            f"{row['other_answers']}, {row['near_ties']} near ties",
        ]
        for row in found["rows"]
    ]
