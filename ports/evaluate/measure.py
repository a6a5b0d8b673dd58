"""Measure a draft: decode every prompt with it and without it, count as vLLM counts, and compare the tokens."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from speculators import SpeculatorModel

from ports.errors import InputError
from ports.evaluate.decode import Answer, Limits, decode, decode_speculatively
from ports.evaluate.drafter import Drafter, drafter_of, open_draft
from ports.evaluate.drafter import untrained as fresh_draft
from ports.evaluate.prompts import family_of, read_prompts
from ports.evaluate.verifier import end_tokens, longest_prompt, open_verifier
from ports.files import check_output_file
from ports.numerics import fix_numerics, numerics
from ports.training.online import checked_device
from ports.training.verifier import open_tokenizer


@dataclass(frozen=True)
class Counters:
    """``drafts`` proposals; ``accepted_per_position[i]`` of them had their tokens 0..i accepted.

    A draft is one proposal that the verifier has checked; the token that the verifier makes of the prompt alone belongs
    to none. Tokens accepted past the end of an answer (its length, or a token that ends it) are counted too.
    """

    drafts: int
    accepted_per_position: tuple[int, ...]

    @classmethod
    def of(cls, accepted: Iterable[int], size: int) -> Counters:
        """From the number of accepted tokens, 0..``size``, of every proposal."""
        lengths = list(accepted)
        return cls(len(lengths), tuple(sum(length > place for length in lengths) for place in range(size)))

    @property
    def acceptance_length(self) -> float:
        """Mean tokens that one pass of the verifier gives: those accepted and its own one; 1 without any draft."""
        return 1.0 + sum(self.accepted_per_position) / max(self.drafts, 1)

    @property
    def rate_per_position(self) -> list[float]:
        """Which share of the proposals was accepted at least up to each position."""
        return [count / max(self.drafts, 1) for count in self.accepted_per_position]


@dataclass(frozen=True)
class Evaluation:
    """The answers to all prompts, with proposals of ``size`` tokens and without any."""

    size: int
    drafted: list[Answer]
    plain: list[Answer]

    @property
    def counters(self) -> Counters:
        """Over all prompts."""
        return Counters.of((count for answer in self.drafted for count in answer.accepted), self.size)

    @property
    def differences(self) -> list[dict[str, int]]:
        """Where drafting changed an answer: prompt, first place in its answer, and both tokens (-1: none there)."""
        found = []
        for prompt, answers in enumerate(zip(self.plain, self.drafted)):
            plain, drafted = ([*answer.tokens, -1] for answer in answers)
            if plain != drafted:
                place = next(place for place, pair in enumerate(zip(plain, drafted)) if pair[0] != pair[1])
                found.append({"prompt": prompt, "place": place, "plain": plain[place], "drafted": drafted[place]})
        return found

    def part(self, chosen: slice) -> Evaluation:
        """Of some prompts."""
        return Evaluation(self.size, self.drafted[chosen], self.plain[chosen])

    def summary(self) -> dict[str, Any]:
        """Everything that is counted, in JSON types."""
        counters, differences = self.counters, self.differences
        return {
            "prompts": len(self.drafted),
            "speculative_tokens": self.size,
            "tokens": sum(len(answer.tokens) for answer in self.drafted),
            "drafts": counters.drafts,
            "proposed": counters.drafts * self.size,
            "accepted": sum(counters.accepted_per_position),
            "accepted_per_position": list(counters.accepted_per_position),
            "rate_per_position": counters.rate_per_position,
            "acceptance_length": counters.acceptance_length,
            "lossless": not differences,
            "differences": differences,
        }


def evaluate(
    verifier: Any, drafter: Drafter, prompts: Sequence[Sequence[int]], limits: Limits, size: int, batch_size: int = 8
) -> Evaluation:
    """Greedy decoding with and without proposals, ``batch_size`` prompts of about equal length at a time."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    drafted: dict[int, Answer] = {}
    plain: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        texts = [prompts[index] for index in chosen]
        plain.update(zip(chosen, decode(verifier, texts, limits)))
        drafted.update(zip(chosen, decode_speculatively(verifier, drafter, texts, limits, size)))
    return Evaluation(size, *([found[index] for index in range(len(prompts))] for found in (drafted, plain)))


class Dtype(str, Enum):
    """Names of torch's precisions, or the verifier's own."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def measure(
    draft: Annotated[Path, typer.Argument(help="Speculators checkpoint of an Eagle3 or HASS draft")],
    prompts: Annotated[
        list[Path],
        typer.Option(
            help="held-out prompts or conversations: .txt, .jsonl or .json; several times: a row each. "
            "Of EAGLE's question.jsonl the first of an entry's turns is asked, the others are not"
        ),
    ],
    verifier: Annotated[str | None, typer.Option(help="default: the one that the checkpoint names")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="length of an answer at most")] = 128,
    speculative_tokens: Annotated[
        int | None, typer.Option(min=1, help="tokens in a proposal; default: as many as the checkpoint names")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="prompts at a time")] = 8,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="go on past a token that ends an answer")] = False,
    untrained: Annotated[bool, typer.Option("--untrained", help="the same draft as its training would start")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of the untrained weights")] = 0,
    device: Annotated[str, typer.Option(help="where both models run; default: cuda if there is one")] = "",
    dtype: Annotated[Dtype, typer.Option(help="precision of both models; auto: the verifier's own")] = Dtype.AUTO,
    chat_template: Annotated[
        str, typer.Option(help="chat family of conversations; default: as in the records that the draft was trained on")
    ] = "",
    json: Annotated[Path | None, typer.Option(help="write the result here as JSON")] = None,
) -> dict[str, Any]:
    """Decode greedily with a draft's proposals and count what the verifier accepts, as vLLM counts.

    Every answer is decoded without the draft too. Exit code 0: the tokens are the same, 1: they differ, 2: bad input.
    """
    if json is not None:
        check_output_file(json, "--json")
    fix_numerics()
    place = checked_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = open_draft(draft, verifier)
    attached = model.config.speculators_config
    name, size = attached.verifier.name_or_path, speculative_tokens or attached.proposal_methods[0].speculative_tokens
    family, longest = family_of(draft, chat_template), longest_prompt(name, tokens, size)
    vocab_size, tokenizer = model.config.transformer_layer_config.vocab_size, cache(lambda: open_tokenizer(name))
    files = [_cut(file, read_prompts(file, tokenizer, vocab_size, family), longest) for file in prompts]
    judge = open_verifier(name, Dtype(dtype).value, place)
    limits = Limits(tokens, frozenset() if ignore_eos else end_tokens(judge))
    drafter = drafter_of(_cast(fresh_draft(model, seed) if untrained else model, judge.dtype).to(place))
    start = time.perf_counter()
    found = evaluate(judge, drafter, [prompt for file in files for prompt in file.prompts], limits, size, batch_size)
    result = {
        "draft": str(draft),
        "verifier": name,
        "algorithm": model.config.speculators_model_type,
        "untrained": untrained,
        "left_out": sum(file.left_out for file in files),
        "chat": family.model_dump(mode="json", exclude_defaults=True),
        **found.summary(),
        "files": _rows(files, found),
        "numerics": numerics(),
        "seconds": round(time.perf_counter() - start, 3),
    }
    if json is not None:
        json.write_text(json_format.dumps(result, indent=1) + "\n")
    return result


@dataclass(frozen=True)
class _File:
    """The prompts that are short enough, and how many are not."""

    name: Path
    prompts: list[list[int]]
    left_out: int


def _cut(name: Path, prompts: list[list[int]], longest: int) -> _File:
    short = [prompt for prompt in prompts if len(prompt) <= longest]
    if not short:
        raise InputError(name, "prompts", f"{min(map(len, prompts))} tokens and more", f"at most {longest} tokens")
    return _File(name, short, len(prompts) - len(short))


def _rows(files: Sequence[_File], found: Evaluation) -> list[dict[str, Any]]:
    """What is counted of each file; its differences count its own prompts."""
    rows, start = [], 0
    for file in files:
        part = found.part(slice(start, start := start + len(file.prompts)))
        rows.append({"file": str(file.name), "left_out": file.left_out, **part.summary()})
    return rows


def _cast(model: SpeculatorModel, dtype: torch.dtype) -> SpeculatorModel:
    """The draft in the verifier's precision, as a server runs it; rotary frequencies stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
