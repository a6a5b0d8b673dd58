#!/usr/bin/env python3
"""Drafts for tiny Qwen 3, gpt-oss and Llama 4 verifiers: trained, saved, opened again, compared and measured.

    python examples/architectures.py runs/architectures

A draft is trained on its verifier's own answers and measured on the same ones: this shows that everything fits
together, not how good drafts are. Exit code 0: every checkpoint opens to the bit, agrees with Speculators' own forward
(HASS, which Speculators does not have: with the reference in `parity/`) to 1e-5, changes no token, and reaches 1.3
times the acceptance length of its untrained self; 1: one does not; 2: bad input.
"""

from __future__ import annotations

import ports  # noqa: F401  # isort: skip  (a torchaudio of another build must not break transformers)

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from safetensors.torch import load_file
from speculators import SpeculatorModel
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor

from parity.fixtures.architectures import ARCHITECTURES, STUDIED
from parity.fixtures.architectures.training import PROMPT, build_answers
from parity.fixtures.folder import write_json
from parity.fixtures.trainer import train_draft
from parity.prototypes.library import speculators_forward
from parity.prototypes.reference.drafts import hass as reference_forward
from ports.commands import run_app
from ports.eagle3.objective import Eagle3Objective
from ports.errors import InputError
from ports.evaluate.drafter import open_draft
from ports.evaluate.measure import measure
from ports.hass.objective import HassObjective
from ports.training.alignment import Alignment
from ports.training.attention import attention_name
from ports.training.data import RecordDataset, collate

TTT_STEPS, PROMPTS, LENGTH = 3, 4, 48
CLOSE, GOAL = 1e-5, 1.3
COLUMNS = ("verifier", "draft", "opens", "logits", "untrained", "trained", "tokens")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def run(
    output: Annotated[Path, typer.Argument(help="fixtures, checkpoints and result.json go here; missing or empty")],
    architecture: Annotated[list[str], typer.Option(help="one of them, or several")] = list(STUDIED),  # noqa: B006
    passes: Annotated[int, typer.Option(min=1, help="passes of each draft over the answers")] = 24,
) -> None:
    output = output.resolve()
    rows = [row for name in architecture for row in rows_of(name, output / name, passes)]
    write_json(output / "result.json", rows)
    Console(width=120).print("\n".join(markdown(rows)), markup=False)
    raise typer.Exit(0 if all(map(good, rows)) else 1)


def rows_of(name: str, folder: Path, passes: int) -> list[dict[str, Any]]:
    """What is found of each draft of an architecture."""
    if name not in ARCHITECTURES:
        raise InputError("command line", "--architecture", name, " or ".join(ARCHITECTURES))
    data = build_answers(ARCHITECTURES[name], folder / "data")
    write_prompts(data)
    kinds = [("eagle3", layer) for layer in ARCHITECTURES[name].drafts] + [("hass", "llama")]
    return [{"verifier": name, **row_of(data, folder, *kind, passes)} for kind in kinds]


def write_prompts(data: Path) -> None:
    """The beginnings of the first answers."""
    files = [data / "data_eagle3" / f"data_{number}.ckpt" for number in range(PROMPTS)]
    prompts = [torch.load(file, weights_only=True)["input_ids"][:PROMPT].tolist() for file in files]
    (data / "prompts.json").write_text(json.dumps(prompts))


def row_of(data: Path, folder: Path, algorithm: str, layer: str, passes: int) -> dict[str, Any]:
    """Train, open, compare, measure."""
    name = f"{algorithm}_{layer}"
    draft = train_draft(data, folder / name, algorithm, f"draft_{name}.json", passes, TTT_STEPS, quiet=True)
    asked = {"draft": draft, "prompts": [data / "prompts.json"], "max_new_tokens": LENGTH, "ignore_eos": True}
    found = [measure(**asked, untrained=untrained) for untrained in (True, False)]
    return {
        "draft": f"{algorithm}, {layer} layer",
        "opens": opens_to_the_bit(draft),
        "difference": largest_difference(draft, data, algorithm, layer),
        "untrained": found[0]["acceptance_length"],
        "trained": found[1]["acceptance_length"],
        "lossless": found[0]["lossless"] and found[1]["lossless"],
    }


def opens_to_the_bit(checkpoint: Path) -> bool:
    """Does Speculators find every saved tensor again?"""
    saved, state = load_file(checkpoint / "model.safetensors"), SpeculatorModel.from_pretrained(checkpoint).state_dict()
    return bool(saved) and all(torch.equal(state[name], value) for name, value in saved.items())


def largest_difference(checkpoint: Path, data: Path, algorithm: str, layer: str) -> float:
    """Of the logits of all TTT steps on the first sample, from somebody else's forward."""
    draft: Any = open_draft(checkpoint)
    batch = collate([samples(draft, data, algorithm)[0]])
    if algorithm == "hass":
        config = json.loads((data / f"draft_hass_{layer}.json").read_text())
        return hass_difference(draft, batch, config)
    return eagle3_difference(draft, batch)


@torch.no_grad()
def eagle3_difference(draft: Any, batch: dict[str, Tensor]) -> float:
    """From Speculators' own forward, whose step s starts s positions later."""
    config = draft.config.__class__.from_dict(draft.config.to_dict())
    config.transformer_layer_config._attn_implementation = "sdpa"
    theirs = Eagle3DraftModel(config)
    theirs.load_state_dict(draft.state_dict())
    theirs.verifier_norm = torch.nn.Identity()  # samples hold targets after the norm
    draft.config.transformer_layer_config._attn_implementation = attention_name(Alignment.CHAIN)
    steps = Eagle3Objective(draft, TTT_STEPS, Alignment.CHAIN)(batch).steps
    gaps = []
    for number, (step, wanted) in enumerate(zip(steps, speculators_forward(theirs, batch, TTT_STEPS)[0])):
        length = wanted.shape[1] - number
        gaps.append(float((step.logits[:, number : number + length] - wanted[:, :length]).abs().max()))
    return max(gaps)


@torch.no_grad()
def hass_difference(draft: Any, batch: dict[str, Tensor], config: dict[str, Any]) -> float:
    """From the reference of the parity runs, in the chain's alignment."""
    inputs = {**batch, "hidden_states": batch["features"]}
    weights = dict(draft.named_parameters())
    steps = HassObjective(draft, TTT_STEPS)(batch).steps
    wanted = reference_forward(weights, config, inputs, draft.lm_head.weight, TTT_STEPS, 1, own_position=False)
    return max(float((step.logits - other.logits).abs().max()) for step, other in zip(steps, wanted.steps))


def samples(draft: Any, data: Path, algorithm: str) -> RecordDataset:
    """Without noise, aligned as the chain."""
    layer = draft.config.transformer_layer_config
    widths = {"hidden_state": layer.hidden_size * (3 if algorithm == "eagle3" else 1)}
    if algorithm == "eagle3":
        widths["target"] = layer.hidden_size
    files = sorted((data / f"data_{algorithm}").iterdir())
    return RecordDataset(
        files=files, widths=widths, vocab_size=layer.vocab_size, alignment=Alignment.CHAIN, noise=False
    )


def good(row: dict[str, Any]) -> bool:
    """Is this what the exit code 0 says?"""
    close = row["difference"] <= CLOSE
    return close and row["opens"] and row["lossless"] and row["trained"] >= GOAL * row["untrained"]


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """The table of ``docs/architectures.md``."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for row in rows:
        opens, tokens = "to the bit" if row["opens"] else "changed", "the same" if row["lossless"] else "other ones"
        numbers = (f"{row['difference']:.1e}", f"{row['untrained']:.3f}", f"{row['trained']:.3f}")
        lines.append(f"| {row['verifier']} | {row['draft']} | {opens} | {' | '.join(numbers)} | {tokens} |")
    return lines


def main() -> None:
    """Entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
