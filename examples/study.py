"""What studies of drafts share: commands that are run once, two at a time, each on its core, and tables of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ports.errors import InputError
from ports.generate.records import digest, start_or_go_on
from ports.verifier.fingerprint import verifier_fingerprint

BENCHMARKS = ("gsm8k", "mt_bench", "humaneval", "alpaca", "qa", "sum")
RATE = 4e-4
"""Of training; the one that suits so narrow a model (docs/results.md)."""

KEPT, KEEPING = "seconds.json", threading.Lock()
"""What each command took, and who writes it holds this."""


def read_lines(file: Path) -> list[str]:
    """Of a checkout's file.

    Raises:
        InputError: it is not there.
    """
    if not file.is_file():
        raise InputError(file, "checkout", "no such file", "a checkout as python examples/smollm2.py --help clones it")
    return file.read_text(encoding="utf-8").splitlines(keepends=True)


class Lane:
    """Work in order, beside other lanes: a thread whose commands keep to ``cores``, where the system can tell them."""

    def __init__(self, cores: set[int]) -> None:
        pin = getattr(os, "sched_setaffinity", None)  # of the calling thread, and of what it starts
        self.pool = ThreadPoolExecutor(1, initializer=pin, initargs=(0, cores) if pin else ())

    def end(self) -> None:
        """Begin nothing more; what runs ends by itself."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def __call__(self, act: Callable[..., Any], *words: Any) -> Future[Any]:
        """Do it after what came before, whatever became of that; a word that is a result to be is waited for."""
        return self.pool.submit(lambda: act(*(each.result() if isinstance(each, Future) else each for each in words)))


def cores() -> list[int]:
    """Of this process."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def two_lanes() -> tuple[Lane, Lane]:
    """Each with half of the cores of this process, and at least one."""
    own = cores()
    half = max(1, len(own) // 2)
    return Lane(set(own[:half])), Lane(set(own[half:] or own))


@dataclass(frozen=True)
class Study:
    """Drafts in ``out``, and what is measured of them."""

    model: Path
    out: Path
    mixed_precision: str
    files: list[Path]
    prompts: int
    tokens: int
    rounds: int

    def ask(self, lines: list[str], **more: int) -> None:
        """The questions of this study, and what ``more`` its drafts depend on.

        Raises:
            InputError: one of others, of another model or in another precision lies in ``out``.
        """
        made = {"verifier": verifier_fingerprint(str(self.model)), "questions": digest(lines)}
        asked = self.out / "questions.jsonl"
        done = next((file.name for file in (self.out / KEPT, asked) if file.exists()), "")
        start_or_go_on(self.out / "study.json", {**made, "mixed_precision": self.mixed_precision, **more}, "out", done)
        asked.write_text("".join(lines))

    def folder(self, name: str) -> Path:
        """Of a draft."""
        return self.out / name.replace(",", "").replace("'", "").replace(" ", "_")

    @property
    def limits(self) -> tuple[object, ...]:
        """Of every measurement."""
        return ("--limit", self.prompts, "--max-new-tokens", self.tokens, "--dtype", "float32")

    def result_of(self, what: str, file: Path, *words: object) -> dict[str, Any]:
        """What a measurement finds; kept in ``file``, whole, with a plot beside it."""
        if not file.exists():
            partial = file.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            self.run(what, *words, "--json", partial, "--plot", file.with_suffix(".svg"), writes=partial)
            partial.rename(file)
        return dict(json.loads(file.read_text()))

    def run(self, what: str, *words: object, writes: Path | None = None) -> None:
        """Run a command unless it has ended well; ``seconds.json`` says which have, and adds up what each took.

        Raises:
            typer.Exit: it failed. Who measures may end with 1: answers changed, which the file that it ``writes`` says.
        """
        if self.kept(what).get("done") and (writes is None or writes.exists()):
            return
        start = time.monotonic()
        code = subprocess.run([sys.executable, "-m", "ports", *map(str, words)], check=False).returncode
        done = code in ((0,) if writes is None else (0, 1)) and (writes is None or writes.exists())
        self.kept(what, time.monotonic() - start, done)
        if not done:
            raise typer.Exit((code if code >= 0 else 128 - code) or 1)

    def kept(self, what: str, seconds: float = 0.0, done: bool = False) -> dict[str, Any]:
        """What is kept of a command, after adding to it."""
        file = self.out / KEPT
        with KEEPING:
            kept = json.loads(file.read_text()) if file.exists() else {}
            if seconds:
                before = kept.get(what, {"seconds": 0})["seconds"]
                kept[what] = {"seconds": round(before + seconds, 1), "done": done}
                partial = file.with_suffix(".partial")
                partial.write_text(json.dumps(kept, indent=1))
                partial.rename(file)
            return dict(kept.get(what, {}))

    def training(self, name: str, own: str, batch: int = 1) -> list[list[str]]:
        """What a draft, trained on the records of ``own``, expected of those held out after each pass, and had seen."""
        told = json.loads((self.folder(own) / "records" / "generation.json").read_text())
        lines = (self.folder(name) / "checkpoints" / "metrics.jsonl").read_text().splitlines()
        found = [entry for entry in map(json.loads, lines) if "val_expected_acceptance" in entry]
        size = told["tokens"] / sum(told["processes"])
        return [
            [
                name,
                str(each["pass"] + 1),
                f"{each['steps'] * batch * size:,.0f}",
                f"{each['val_expected_acceptance']:.3f}",
            ]
            for each in found
        ]

    def minutes(self) -> list[list[str]]:
        """Of every command."""
        kept = json.loads((self.out / KEPT).read_text())
        return [[what, f"{each['seconds'] / 60:.1f}"] for what, each in kept.items()]


def table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """As Markdown has it."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def accepted(row: dict[str, Any]) -> str:
    """Acceptance length, and by position."""
    return f"{row['acceptance_length']:.3f} ({', '.join(f'{rate:.3f}' for rate in row['rate_per_position'])})"
