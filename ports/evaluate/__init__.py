"""How many of a draft's tokens its verifier accepts, by speculative decoding in plain torch."""
