"""Makes ``counts.json`` anew, in minutes: ``python -m tests.ports.evaluate.counts FOLDER`` (a new one).

A tiny Llama's Eagle3 draft, trained on its answers to pieces of the shipped dialogues, and what is accepted of its
proposals for 256 others: after 2 and after 5 passes, greedily, and after 5 drawn under five seeds for the first 42.
"""

import json
import random
import sys
from pathlib import Path

from parity.fixtures.conversations import load_conversations
from parity.fixtures.tokenizer import build_tokenizer
from parity.fixtures.verifier import VerifierSpec, build_verifier
from ports import cli

FILE = Path(__file__).with_suffix(".json")
SPEC = VerifierSpec(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_hidden_layers=7)
TRAINED, ASKED, TOKENS = 360, 256, 48
PASSES, SEEDS = {"after 2 passes": 1, "after 5 passes": 4}, 5


def write_pieces(folder):
    """Three to twelve words each."""
    words = [word for dialogue in load_conversations() for turn in dialogue for word in turn["content"].split()]
    draws, rows = random.Random(0), []
    for _ in range(TRAINED + ASKED):
        start, count = draws.randrange(len(words) - 12), draws.randint(3, 12)
        rows.append(json.dumps({"prompt": " ".join(words[start : start + count])}) + "\n")
    (folder / "train.jsonl").write_text("".join(rows[:TRAINED]))
    (folder / "asked.jsonl").write_text("".join(rows[TRAINED:]))


def counted(folder, number, *flags):
    """Of every prompt its proposals and what was accepted of them by position."""
    draft, prompts, result = folder / f"run/checkpoints/model{number}", folder / "asked.jsonl", folder / "result.json"
    words = [str(draft), "--prompts", str(prompts), "--max-new-tokens", str(TOKENS), "--max-concurrency", "32"]
    cli.run(["evaluate", *words, "--ignore-eos", "--json", str(result), *flags])
    rows = json.loads(result.read_text())["files"][0]["by_prompt"]
    return [[row["drafts"], *row["accepted_per_position"]] for row in rows]


def main(folder):
    folder.mkdir(parents=True)
    verifier = build_tokenizer(build_verifier(SPEC, folder / "verifier"))
    write_pieces(folder)
    words = ["--verifier", str(verifier), "--data", str(folder / "train.jsonl"), "--out", str(folder / "run")]
    cli.run(["draft", *words, "--engine", "transformers", "--max-new-tokens", str(TOKENS), "--epochs", "5"])
    found = {name: counted(folder, number) for name, number in PASSES.items()}
    drawn = ("--limit", "42", "--temperature", "1")
    found["seeds"] = [counted(folder, 4, *drawn, "--seed", str(seed)) for seed in range(SEEDS)]
    FILE.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
