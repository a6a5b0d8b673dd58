"""HASS in vLLM, which has no such algorithm of its own: a plugin, and a folded form of the draft.

vLLM finds the plugin by its entry point in every process it starts; nothing here imports vLLM before that.
"""
