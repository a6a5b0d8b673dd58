"""One vLLM engine in a process of its own: ``python -m ports.serving.engine request.json answer.json PARENT``.

The request is a :class:`Request` as JSON; the answer a list with what :func:`serve` found at each batch size. PARENT is
the id of the process that waits for it, with which it ends.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

from ports.training.workers import end_with_parent

COUNTERS = {
    "vllm:spec_decode_num_drafts": "drafts",
    "vllm:spec_decode_num_draft_tokens": "proposed",
    "vllm:spec_decode_num_accepted_tokens": "accepted",
    "vllm:spec_decode_num_accepted_tokens_per_pos": "accepted_per_position",
}
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Request:
    """What an engine is asked.

    ``engine`` are the arguments of ``vllm.LLM``, ``prompts`` token ids, ``length`` the tokens of an answer at most, and
    ``batch_sizes`` how many requests are in flight, one run each. ``parts``: measure the draft's and the verifier's
    share of the time, which needs an engine in this process and a device that is waited for (a CPU).
    """

    engine: dict[str, Any]
    prompts: list[list[int]]
    length: int
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    ignore_eos: bool = False
    parts: bool = False


@dataclass
class Spent:
    """Seconds inside the verifier's forward and inside the draft's proposing."""

    verifier: float = 0.0
    draft: float = 0.0

    @contextmanager
    def adding(self, part: str) -> Iterator[None]:
        """The time of the block goes to ``part``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, part, getattr(self, part) + time.perf_counter() - start)


def serve(request: Request) -> list[dict[str, Any]]:
    """Greedy answers to all prompts at every batch size, with times and what vLLM counted meanwhile."""
    llm = LLM(**request.engine)
    spent = Spent()
    if request.parts:
        llm.collective_rpc(lambda worker: _watch(worker.model_runner, spent))
    greedy = SamplingParams(temperature=0.0, max_tokens=request.length, ignore_eos=request.ignore_eos)
    shortest = min(request.prompts, key=len)
    most, few = max(request.batch_sizes), SamplingParams(temperature=0.0, max_tokens=WARM_UP_TOKENS)
    _answer(llm, [shortest] * most, few, most)
    found = []
    for batch_size in request.batch_sizes:
        before, spent.verifier, spent.draft = counters(llm), 0.0, 0.0
        run = _answer(llm, request.prompts, greedy, batch_size)
        counted = {name: _less(value, before.get(name, 0)) for name, value in counters(llm).items()}
        parts = {f"{part}_seconds": seconds for part, seconds in asdict(spent).items()} if request.parts else {}
        found.append({"batch_size": batch_size, **run, **counted, **parts})
    return found


def _watch(runner: Any, spent: Spent) -> None:
    """Let a worker's ``runner`` count what it does in ``spent``."""
    _timed(runner.model, "forward", spent, "verifier")
    if getattr(runner, "drafter", None) is not None:
        _timed(runner.drafter, "propose", spent, "draft")


def _timed(owner: Any, name: str, spent: Spent, part: str) -> None:
    inner = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        with spent.adding(part):
            return inner(*args, **kwargs)

    setattr(owner, name, timed)


def _answer(llm: LLM, prompts: Sequence[list[int]], params: SamplingParams, batch_size: int) -> dict[str, Any]:
    """Answers with ``batch_size`` requests in flight: tokens, seconds of all, seconds to each one's first token."""
    engine, waiting = llm.llm_engine, list(enumerate(prompts))[::-1]
    tokens: dict[int, list[int]] = {}
    asked: dict[int, float] = {}
    first: dict[int, float] = {}
    start = time.perf_counter()
    while waiting or engine.has_unfinished_requests():
        while waiting and len(asked) - len(tokens) < batch_size:
            number, ids = waiting.pop()
            asked[number] = time.perf_counter()
            engine.add_request(str(number), {"prompt_token_ids": ids}, params)
        for output in engine.step():
            number = int(output.request_id.partition("-")[0])
            first.setdefault(number, time.perf_counter() - asked[number])
            if output.finished:
                tokens[number] = list(output.outputs[0].token_ids)
    seconds = time.perf_counter() - start
    order = range(len(prompts))
    return {"seconds": seconds, "tokens": [tokens[n] for n in order], "first_token_seconds": [first[n] for n in order]}


def counters(llm: LLM) -> dict[str, Any]:
    """The counters of speculative decoding under short names; none of them without a draft."""
    found = {COUNTERS[metric.name]: metric for metric in llm.get_metrics() if metric.name in COUNTERS}
    return {name: getattr(metric, "values", None) or getattr(metric, "value", 0) for name, metric in found.items()}


def _less(now: Any, before: Any) -> Any:
    if isinstance(now, list):
        return [after - count for after, count in zip(now, before or [0] * len(now))]
    return now - before


if __name__ == "__main__":
    end_with_parent(parent=int(sys.argv[3]))
    asked, answer = map(Path, sys.argv[1:3])
    answer.write_text(json.dumps(serve(Request(**json.loads(asked.read_text())))))
