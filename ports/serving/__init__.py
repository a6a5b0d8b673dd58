"""HASS in vLLM, which has no such algorithm of its own: a plugin, and a folded form of the draft.

vLLM finds the plugin by its entry point in every process it starts; nothing here imports vLLM before that.
"""

COUNTERS = {
    "vllm:spec_decode_num_drafts": "drafts",
    "vllm:spec_decode_num_draft_tokens": "proposed",
    "vllm:spec_decode_num_accepted_tokens": "accepted",
    "vllm:spec_decode_num_accepted_tokens_per_pos": "accepted_per_position",
}
"""What vLLM counts of proposals, by its names and ours; here, so that an engine's process imports nothing else."""
