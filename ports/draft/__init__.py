"""``speculator draft``: from a chat model and prompts to a draft that can be served, phase by phase."""
