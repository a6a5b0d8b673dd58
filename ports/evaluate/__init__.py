"""How many of a draft's tokens its verifier accepts, by greedy speculative decoding in plain torch."""
