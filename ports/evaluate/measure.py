"""One measurement, from what a user names to a result in JSON types."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from speculators import SpeculatorModel

from ports.errors import InputError
from ports.evaluate.decode import Limits
from ports.evaluate.drafts import drafter_of, open_draft, untrained
from ports.evaluate.evaluation import Evaluation, evaluate
from ports.evaluate.prompts import family_of, read_prompts
from ports.evaluate.verifiers import end_tokens, longest_prompt, open_verifier
from ports.generate.chat import ChatFamily
from ports.numerics import fix_numerics, numerics
from ports.training.data.features import checked_device
from ports.training.verifier import open_tokenizer


@dataclass(frozen=True)
class Request:
    """What to measure; see ``python -m ports.evaluate --help``. None stands for what the checkpoint names."""

    draft: Path
    prompts: Path
    verifier: str | None = None
    tokens: int = 128
    speculative_tokens: int | None = None
    batch_size: int = 8
    ignore_eos: bool = False
    untrained: bool = False
    seed: int = 0
    device: str = ""
    dtype: str = "auto"
    chat_template: str = ""


def measure(request: Request) -> dict[str, Any]:
    """Open the models, decode all prompts, and say what was counted.

    Raises:
        InputError: names the file, the field, what was found and what was expected.
    """
    fix_numerics()
    device = checked_device(request.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = open_draft(request.draft, request.verifier)
    attached = model.config.speculators_config
    name, size = attached.verifier.name_or_path, request.speculative_tokens
    size = size or attached.proposal_methods[0].speculative_tokens
    family = family_of(request.draft, request.chat_template)
    prompts, left_out = _prompts(request.prompts, name, longest_prompt(name, request.tokens, size), model, family)
    verifier = open_verifier(name, request.dtype, device)
    chosen = untrained(model, request.seed) if request.untrained else model
    drafter = drafter_of(_cast(chosen, verifier.dtype).to(device))
    limits = Limits(request.tokens, frozenset() if request.ignore_eos else end_tokens(verifier))
    start = time.perf_counter()
    found = evaluate(verifier, drafter, prompts, limits, size, request.batch_size)
    return {
        "draft": str(request.draft),
        "verifier": name,
        "algorithm": model.config.speculators_model_type,
        "untrained": request.untrained,
        "prompts": len(prompts),
        "left_out": left_out,
        "chat": family.model_dump(mode="json", exclude_defaults=True),
        **_summary(found),
        "numerics": numerics(),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _summary(found: Evaluation) -> dict[str, Any]:
    counters = found.counters
    return {
        "speculative_tokens": len(counters.accepted_per_position),
        "tokens": sum(map(len, found.tokens)),
        "drafts": counters.drafts,
        "proposed": counters.proposed,
        "accepted": counters.accepted,
        "accepted_per_position": list(counters.accepted_per_position),
        "rate_per_position": counters.rate_per_position,
        "acceptance_length": counters.acceptance_length,
        "lossless": not found.differences,
        "differences": [asdict(difference) for difference in found.differences],
    }


def _prompts(
    file: Path, verifier: str, longest: int, model: SpeculatorModel, family: ChatFamily
) -> tuple[list[list[int]], int]:
    """The prompts that are short enough, and how many are not."""
    vocab_size = model.config.transformer_layer_config.vocab_size
    found = read_prompts(file, lambda: open_tokenizer(verifier), vocab_size, family)
    short = [prompt for prompt in found if len(prompt) <= longest]
    if not short:
        raise InputError(file, "prompts", f"{min(map(len, found))} tokens and more", f"at most {longest} tokens")
    return short, len(found) - len(short)


def _cast(model: SpeculatorModel, dtype: torch.dtype) -> SpeculatorModel:
    """The draft in the verifier's precision, as a server runs it; rotary frequencies stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
