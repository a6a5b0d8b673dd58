"""Every tiny verifier with a draft in vLLM: ``python -m docs.served [NAME ...]`` where vLLM for CPUs is installed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from docs.verifiers import ANSWER, STEPS, Way
from parity.fixtures.architectures import ARCHITECTURES
from parity.fixtures.architectures.table import CHUNK, PLAINER
from ports.errors import InputError
from ports.serving.bench import start_engine
from ports.verifier.interfaces import installed

SERVED = Path(__file__).with_name("served.json")
"""``version`` of vLLM, and by the name of a verifier what it did."""

MARGIN = 1e-3
"""Logits nearer than that, in float32, are decided by rounding."""

ENGINE = {"dtype": "float32", "max_model_len": 128, "enforce_eager": True, "disable_log_stats": False, "seed": 0}
OWN: dict[str, dict[str, Any]] = {"llama4": {"limit_mm_per_prompt": {"image": 0}, "block_size": CHUNK}}
SAME = "the same tokens"


def served(name: str, folder: Path, **changes: Any) -> str:
    """Greedy tokens of vLLM with an Eagle3 draft beside transformers' own without one, or why there are none."""
    way = Way(name, folder, **changes)
    way.make()
    way.train()
    speculative = {"method": "eagle3", "model": str(way.draft), "num_speculative_tokens": STEPS}
    engine = {**ENGINE, **OWN.get(name, {}), "model": way.verifier, "speculative_config": speculative}
    request = {"engine": engine, "prompts": way.prompts, "length": ANSWER, "ignore_eos": True}
    try:
        (found,) = start_engine(request, str(min(os.sched_getaffinity(0))))
    except InputError as error:
        return f"refused: {error.found}".replace(f"{folder}/", "")
    return _compared(way, found["tokens"])


def _compared(way: Way, answers: Sequence[list[int]]) -> str:
    for prompt, answer in zip(way.prompts, answers, strict=True):
        logits = way.logits(torch.tensor(prompt + answer))[len(prompt) - 1 : -1]
        behind = logits.max(-1).values - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        if float(behind.max()) > MARGIN:
            return f"other tokens, {float(behind.max()):.2f} behind the likeliest"
    return SAME


def main(names: Sequence[str]) -> None:
    """Try those, or all."""
    version = installed()
    known = json.loads(SERVED.read_text()) if SERVED.exists() else {}
    trials = known.get("trials", {}) if known.get("version") == version else {}
    for name in names or ARCHITECTURES:
        with TemporaryDirectory() as folder:
            trials[name] = served(name, Path(folder, "own"))
            if more := PLAINER.get(name):
                trials[name] += f"; with {json.dumps(more)[1:-1]} {served(name, Path(folder, 'plainer'), **more)}"
        ordered = {each: trials[each] for each in ARCHITECTURES if each in trials}
        SERVED.write_text(json.dumps({"version": version, "trials": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
