"""HASS in vLLM, which has no such algorithm of its own: a plugin, and a folded form of the draft.

vLLM finds the plugin by its entry point in every process it starts; nothing here imports vLLM before that.
"""

from enum import Enum

COUNTERS = {
    "vllm:spec_decode_num_drafts": "drafts",
    "vllm:spec_decode_num_draft_tokens": "proposed",
    "vllm:spec_decode_num_accepted_tokens": "accepted",
    "vllm:spec_decode_num_accepted_tokens_per_pos": "accepted_per_position",
}
"""What vLLM counts of proposals, by its names and ours; here, so that an engine's process imports nothing else."""


class Lookup(str, Enum):
    """vLLM's own ways to propose what has followed the same tokens in the text before, without a draft."""

    NGRAM = "ngram"
    SUFFIX = "suffix"


LOOKUPS = {"ngram": {"method": "ngram", "prompt_lookup_max": 4}, "suffix": {"method": "suffix"}}
"""What vLLM is given of each, beside how many tokens; an n-gram has 4 tokens at most."""
