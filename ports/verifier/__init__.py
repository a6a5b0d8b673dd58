"""The verifier that a draft belongs to: its config, weights and tokenizer, and how to know it again."""
