"""The prototypes' loss masks, right or not; see ``hard-coded-offsets`` and ``first-match-mask`` in the ledger.

Shapes: T tokens of the dialogue; a mask is T numbers, 0 or 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ports.generate.conversations import ConversationError
from ports.generate.families import FirstMatch, Offsets

Tokens = Callable[[str], list[int]]
"""Text to ids."""


def offsets_mask(text: str, length: int, rule: Offsets, with_bos: Tokens) -> list[int]:
    """Ones, less the stretches between answers, whose places are sums of token counts plus constants.

    Args:
        text: the rendered dialogue.
        length: T.
        rule: the family's headers.
        with_bos: tokenizes with the tokenizer's automatic special tokens, which the constants allow for.

    Raises:
        ConversationError: no user turn, where the prototype stops with an IndexError.
    """
    opening, *turns = text.split(rule.user)
    if not turns:
        raise ConversationError(f"found no {rule.user!r}, expected a turn of the user")
    turns[0] = opening + rule.user + turns[0]
    mask, reached = [1] * length, 1
    _clear(mask, 0, 1)
    for number, turn in enumerate(turns):
        prompt, *answers = turn.split(rule.answer)
        if turn == "" or len(answers) != 1:
            break
        prompt_length = len(with_bos(prompt + rule.answer)) - 1
        if number == 0:
            _clear(mask, reached, reached + prompt_length - 2)
        else:
            _clear(mask, reached - 3, reached + prompt_length + 1)
        reached += len(with_bos(turn)) + (3 if number else 0)
    _clear(mask, reached, length)
    return mask


def _clear(mask: list[int], start: int, stop: int) -> None:
    for position in range(*slice(start, stop).indices(len(mask))):
        mask[position] = 0


def first_match_mask(text: str, ids: Sequence[int], rule: FirstMatch, plain: Tokens) -> list[int]:
    """Ones where the tokens of each answer occur first in ``ids``.

    Raises:
        ConversationError: an answer tokenizes differently by itself, where the prototype stops with an IndexError.
    """
    mask = [0] * len(ids)
    between = re.compile(f"{re.escape(rule.after)}(.*?){re.escape(rule.before)}", re.DOTALL)
    for answer in between.findall(text):
        wanted = plain(answer)
        first = _find(list(ids), wanted)
        mask[first : first + len(wanted)] = [1] * len(wanted)
    return mask


def _find(ids: list[int], wanted: list[int]) -> int:
    for start in range(len(ids) - len(wanted) + 1):
        if ids[start : start + len(wanted)] == wanted:
            return start
    raise ConversationError(f"found no occurrence of the {len(wanted)} tokens of an answer, expected one")
