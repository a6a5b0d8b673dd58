"""One vLLM engine in a process of its own: ``python -m ports.serving.engine request.json answer.json PARENT``.

The request holds the arguments of :func:`serve` as JSON, the answer what it gives. PARENT is the id of the process that
waits for it, with which it ends.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm import LLM, SamplingParams

from ports.serving import COUNTERS
from ports.training.stop import end_with_parent

WARM_UP_TOKENS = 8
LIKELIEST = 20
"""Of how many tokens the logits are told at each place; vLLM gives no more unless it is started so."""


def serve(
    engine: dict[str, Any],
    prompts: Sequence[list[int]],
    length: int,
    batch_sizes: Sequence[int] = (1,),
    ignore_eos: bool = False,
    parts: bool = False,
    told: bool = False,
) -> list[dict[str, Any]]:
    """Greedy answers to all prompts at every batch size, with times and what vLLM counted meanwhile.

    Args:
        engine: arguments of ``vllm.LLM``.
        prompts: token ids.
        length: tokens of an answer at most.
        batch_sizes: how many requests are in flight, one run each.
        ignore_eos: go on past a token that ends an answer.
        parts: measure the seconds in the draft's proposing and in the verifier's forward, which needs an engine in this
            process and a device that is waited for (a CPU).
        told: before the clock runs, answer once more with the logits of the likeliest tokens: ``told`` are these tokens
            and ``logits``, by place a dictionary from token to logit, and ``dtype`` what the verifier computes in.
    """
    llm, spent = LLM(**engine), dict.fromkeys(("draft_seconds", "verifier_seconds") if parts else (), 0.0)
    if parts:
        llm.collective_rpc(lambda worker: _watch(worker.model_runner, spent))
    greedy = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=ignore_eos)
    most, few = max(batch_sizes), SamplingParams(temperature=0.0, max_tokens=WARM_UP_TOKENS)
    _answer(llm, [min(prompts, key=len)] * most, few, most)
    found = []
    for batch_size in batch_sizes:
        more = _tell(llm, prompts, greedy, batch_size) if told else {}
        before = counters(llm)
        spent.update(dict.fromkeys(spent, 0.0))
        run = _answer(llm, prompts, greedy, batch_size)
        counted = {name: (value - before.get(name, 0)).tolist() for name, value in counters(llm).items()}
        found.append({"batch_size": batch_size, **run, **counted, **spent, **more})
    return found


def _tell(llm: LLM, prompts: Sequence[list[int]], params: SamplingParams, batch_size: int) -> dict[str, Any]:
    """Answers with their logits, whatever it costs."""
    params = SamplingParams(
        temperature=0.0,
        max_tokens=params.max_tokens,
        ignore_eos=params.ignore_eos,
        logprobs=LIKELIEST,
        detokenize=False,
    )
    run = _answer(llm, prompts, params, batch_size)
    dtype = str(llm.llm_engine.vllm_config.model_config.dtype).removeprefix("torch.")
    return {"told": {"tokens": run["tokens"], "logits": run.get("logits"), "dtype": dtype}}


def _watch(runner: Any, spent: dict[str, float]) -> None:
    """Let a worker's ``runner`` add the seconds of what it does to ``spent``."""
    runner.model.forward = _timed(runner.model.forward, spent, "verifier_seconds")
    if getattr(runner, "drafter", None) is not None:
        runner.drafter.propose = _timed(runner.drafter.propose, spent, "draft_seconds")


def _timed(act: Callable[..., Any], spent: dict[str, float], part: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return act(*args, **kwargs)
        finally:
            spent[part] += time.perf_counter() - start

    return timed


def _answer(llm: LLM, prompts: Sequence[list[int]], params: SamplingParams, batch_size: int) -> dict[str, Any]:
    """Answers with ``batch_size`` requests in flight: tokens, seconds of all, of each and to each one's first token,
    how many tokens each had after every step, and logits by place and token, where ``params`` ask for them."""
    engine, waiting = llm.llm_engine, list(enumerate(prompts))[::-1]
    tokens: dict[int, list[int]] = {}
    logits: dict[int, list[dict[int, float]]] = {}
    asked: dict[int, float] = {}
    first: dict[int, float] = {}
    took: dict[int, float] = {}
    grown: dict[int, list[int]] = {}
    start = time.perf_counter()
    while waiting or engine.has_unfinished_requests():
        while waiting and len(asked) - len(tokens) < batch_size:
            number, ids = waiting.pop()
            asked[number] = time.perf_counter()
            engine.add_request(str(number), {"prompt_token_ids": ids}, params)
        for output in engine.step():
            number = int(output.request_id.partition("-")[0])
            first.setdefault(number, time.perf_counter() - asked[number])
            answer = output.outputs[0]
            grown.setdefault(number, []).append(len(answer.token_ids))
            if output.finished:
                took[number] = time.perf_counter() - asked[number]
                tokens[number] = list(answer.token_ids)
                places = getattr(answer, "logprobs", None) or []
                logits[number] = [{token: each.logprob for token, each in place.items()} for place in places]
    seconds = time.perf_counter() - start
    order = range(len(prompts))
    each: dict[str, dict[int, Any]] = {"tokens": tokens, "first_token_seconds": first, "took": took, "grown": grown}
    found = {"seconds": seconds, **{name: [values[n] for n in order] for name, values in each.items()}}
    return found | ({"logits": [logits[n] for n in order]} if any(logits.values()) else {})


def counters(llm: LLM) -> dict[str, NDArray[Any]]:
    """The counters of speculative decoding under short names; none of them without a draft."""
    found = {COUNTERS[metric.name]: metric for metric in llm.get_metrics() if metric.name in COUNTERS}
    return {name: np.array(getattr(each, "values", None) or getattr(each, "value", 0)) for name, each in found.items()}


if __name__ == "__main__":
    end_with_parent(parent=int(sys.argv[3]))
    asked, answer = map(Path, sys.argv[1:3])
    answer.write_text(json.dumps(serve(**json.loads(asked.read_text()))))
