"""From the steps of an unroll to the numbers that are reported and descended."""
