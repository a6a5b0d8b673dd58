"""Run the unmodified training script of a prototype in its own process and record what it computes."""
