"""How much arithmetic a step needs, whoever does it: the FLOPs that count as useful.

A product of [T, a] with [a, b] is T a b multiply-adds forward, as many again for the gradient of its input and of its
weight. Counted once: what one pass can share (the embedding's half of the projections, the verifier's target). Not
counted: rows outside the loss in the heads, vocabulary the draft does not speak, anything computed a second time
(recomputed attention scores, checkpointing, re-projected history), and elementwise work.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.shapes import DRAFT_VOCABULARY, SPEC, Shape

FORWARD_AND_BACKWARD = 3
"""Forward, gradient of the input, gradient of the weight."""


def useful_flops(shape: Shape) -> int:
    """FLOPs of one optimizer step, two per multiply-add; the optimizer's own are negligible."""
    return 2 * _OF[shape.algorithm](shape)


def _eagle3(shape: Shape) -> int:
    h, tokens, rows = SPEC.hidden_size, shape.length, shape.rows
    once = 2 * tokens * 3 * h * h  # fc: the features want no gradient
    once += FORWARD_AND_BACKWARD * tokens * h * _projections()  # the embedding's half of query, key and value
    once += rows * h * DRAFT_VOCABULARY  # target
    layer = tokens * (h * _projections() + _rest_of_layer())
    head = rows * h * DRAFT_VOCABULARY
    return once + shape.ttt_steps * (FORWARD_AND_BACKWARD * (layer + head) + _attention(tokens))


def _hass(shape: Shape) -> int:
    h, tokens, rows = SPEC.hidden_size, shape.length, shape.rows
    once = FORWARD_AND_BACKWARD * tokens * h * h  # the embedding's half of fc
    once += rows * h * SPEC.vocab_size  # target
    layer = tokens * (h * h + h * _projections() + _rest_of_layer())
    head = 2 * rows * h * SPEC.vocab_size  # frozen: no gradient of the weight
    return once + shape.ttt_steps * (FORWARD_AND_BACKWARD * layer + head + _attention(tokens))


def _projections() -> int:
    """Width of query, key and value together."""
    return (SPEC.num_attention_heads + 2 * SPEC.num_key_value_heads) * _head_dim()


def _rest_of_layer() -> int:
    """Multiply-adds per token of output projection and MLP."""
    h = SPEC.hidden_size
    return SPEC.num_attention_heads * _head_dim() * h + 3 * h * SPEC.intermediate_size


def _attention(tokens: int) -> int:
    """The causal half of scores and of weights times values; four products backward."""
    return 3 * tokens * (tokens + 1) * SPEC.num_attention_heads * _head_dim()


def _head_dim() -> int:
    return SPEC.head_dim or SPEC.hidden_size // SPEC.num_attention_heads


_OF: dict[str, Callable[[Shape], int]] = {"eagle3": _eagle3, "hass": _hass}
