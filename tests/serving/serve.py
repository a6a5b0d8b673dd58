"""Serve one request file with vLLM in a process of its own: ``python serve.py request.json answer.json``.

The request names the engine's arguments, the prompts as token ids and how many tokens to generate greedily; the answer
holds the tokens and the counters of speculative decoding.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

COUNTERS = {
    "vllm:spec_decode_num_drafts": "drafts",
    "vllm:spec_decode_num_draft_tokens": "proposed",
    "vllm:spec_decode_num_accepted_tokens": "accepted",
    "vllm:spec_decode_num_accepted_tokens_per_pos": "accepted_per_position",
}


def serve(engine: dict[str, Any], prompts: list[list[int]], length: int) -> dict[str, Any]:
    """``length`` greedy tokens after each prompt, one prompt at a time, and what the counters say at the end."""
    llm = LLM(**engine)
    greedy = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
    tokens = [list(llm.generate({"prompt_token_ids": ids}, greedy)[0].outputs[0].token_ids) for ids in prompts]
    return {"tokens": tokens, **counters(llm)}


def counters(llm: LLM) -> dict[str, Any]:
    """The counters of speculative decoding under short names; none of them without a draft."""
    found = {COUNTERS[metric.name]: metric for metric in llm.get_metrics() if metric.name in COUNTERS}
    return {name: getattr(metric, "values", None) or getattr(metric, "value", 0) for name, metric in found.items()}


if __name__ == "__main__":
    request, answer = map(Path, sys.argv[1:])
    answer.write_text(json.dumps(serve(**json.loads(request.read_text()))))
