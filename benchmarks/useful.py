"""How much arithmetic a step needs, whoever does it: the FLOPs that count as useful.

A product of [T, a] with [a, b] is T a b multiply-adds forward, as many again for the gradient of its input and of its
weight. Counted once: what one pass can share (the embedding's half of the projections, the verifier's target). Not
counted: vocabulary the draft does not speak, anything computed a second time (recomputed attention scores,
checkpointing, re-projected history), elementwise work, and what reaches no loss:

- rows outside the loss in the heads;
- the queries, output projection and MLP of such rows where nothing reads their output: at the last TTT step;
- the backward of the same where nothing reads their output with gradient: at the last TTT step, and in HASS, which
  detaches what a step hands on, at every step.

Their keys and values count: the rows in the loss attend to them.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.shapes import DRAFT_VOCABULARY, SPEC, Shape

HEADS, KEYS_AND_VALUES = SPEC.num_attention_heads * SPEC.head_dim, 2 * SPEC.num_key_value_heads * SPEC.head_dim
"""Widths of the queries, and of keys and values together."""
FORWARD_AND_BACKWARD = 3
"""Forward, gradient of the input, gradient of the weight."""


def useful_flops(shape: Shape) -> int:
    """FLOPs of one optimizer step, two per multiply-add; the optimizer's own are negligible."""
    return 2 * _OF[shape.algorithm](shape)


def _eagle3(shape: Shape) -> int:
    h, tokens, rows = SPEC.hidden_size, shape.length, shape.rows
    once = 2 * tokens * 3 * h * h  # fc: the features want no gradient
    once += (
        FORWARD_AND_BACKWARD * tokens * h * (HEADS + KEYS_AND_VALUES)
    )  # the embedding's half of query, key and value
    once += rows * h * DRAFT_VOCABULARY  # target
    head = FORWARD_AND_BACKWARD * rows * h * DRAFT_VOCABULARY
    every = shape.ttt_steps * (head + FORWARD_AND_BACKWARD * tokens * h * KEYS_AND_VALUES)
    earlier = (shape.ttt_steps - 1) * _row_wise(shape, tokens, tokens)
    return once + every + earlier + _row_wise(shape, rows, rows)


def _hass(shape: Shape) -> int:
    h, tokens, rows = SPEC.hidden_size, shape.length, shape.rows
    once = FORWARD_AND_BACKWARD * tokens * h * h  # the embedding's half of fc
    once += rows * h * SPEC.vocab_size  # target
    head = 2 * rows * h * SPEC.vocab_size  # frozen: no gradient of the weight
    every = shape.ttt_steps * (head + FORWARD_AND_BACKWARD * tokens * h * (h + KEYS_AND_VALUES))
    earlier = (shape.ttt_steps - 1) * _row_wise(shape, tokens, rows)
    return once + every + earlier + _row_wise(shape, rows, rows)


def _row_wise(shape: Shape, forward: int, backward: int) -> int:
    """Queries, attention, output projection and MLP of one step, on the last so many rows forward and backward."""
    h, width = SPEC.hidden_size, HEADS
    products = h * width + width * h + 3 * h * SPEC.intermediate_size
    pairs = _pairs(shape.length, forward) + 2 * _pairs(shape.length, backward)
    return products * (forward + 2 * backward) + 2 * width * pairs


def _pairs(tokens: int, rows: int) -> int:
    """Of a row and a column it sees: all of a row's columns up to its own. Scores and weighted values each take one
    multiply-add per pair and channel; backward there are four such products, the scores made again not among them."""
    return (tokens * (tokens + 1) - (tokens - rows) * (tokens - rows + 1)) // 2


_OF: dict[str, Callable[[Shape], int]] = {"eagle3": _eagle3, "hass": _hass}
