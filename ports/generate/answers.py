"""Which tokens of a rendered dialogue are answers, for any chat template and tokenizer.

The template itself says where an answer goes: it is rendered a second time with marks around every answer, and what
lies between the marks is the answer. The marks must leave the rest of the text as it was; otherwise there is no mask.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import product

from ports.generate.conversations import ConversationError, Message

OPEN, CLOSE = "\ue0f0", "\ue0f1"
"""Two characters of Unicode's private use area."""

MARK = re.compile(f"[{OPEN}{CLOSE}]")
Span = tuple[int, int]
"""Characters [start, stop) of a text."""

Render = Callable[[Sequence[Message]], str]


def answer_spans(messages: Sequence[Message], render: Render) -> list[Span]:
    """Where the answers stand in ``render(messages)``; an empty answer has no span.

    A template may trim answers: white space at either end of one belongs to it where the template keeps it.

    Raises:
        ConversationError: the text holds a mark, or the template does not give every answer as it is.
    """
    text = render(messages)
    if MARK.search(text):
        raise ConversationError("found a character that marks answers, expected a text without U+E0F0 and U+E0F1")
    for keep_left, keep_right in product((True, False), repeat=2):
        marked = render([_mark(message, keep_left, keep_right) for message in messages])
        if MARK.sub("", marked) == text:
            return _spans(marked)
    raise ConversationError("the chat template changes with the text of an answer, expected one that inserts it")


def _mark(message: Message, keep_left: bool, keep_right: bool) -> Message:
    content = message["content"]
    if message["role"] != "assistant" or not content.strip():
        return message
    start = 0 if keep_left else len(content) - len(content.lstrip())
    stop = len(content) if keep_right else len(content.rstrip())
    return {**message, "content": content[:start] + OPEN + content[start:stop] + CLOSE + content[stop:]}


def _spans(marked: str) -> list[Span]:
    """The marks' places in the text without them."""
    places = [match.start() - number for number, match in enumerate(MARK.finditer(marked))]
    kinds = [match.group() for match in MARK.finditer(marked)]
    if kinds != [OPEN, CLOSE] * (len(kinds) // 2):
        raise ConversationError("the chat template repeats or splits an answer, expected each of them once")
    return list(zip(places[::2], places[1::2]))


def mask_of(spans: Sequence[Span], offsets: Sequence[Span], length: int) -> list[int]:
    """1 on every token that holds a character of an answer.

    Args:
        spans: the answers, in order, not overlapping.
        offsets: each token's characters, as the tokenizer says. What no token claims (white space, with tokenizers
            that trim offsets) belongs to the next one.
        length: of the text.
    """
    starts = [start for start, _ in spans]
    mask, reached = [], 0
    for start, stop in offsets:
        begin, end = min(start, reached), max(stop, reached)
        reached = end
        mask.append(int(_touches(spans, starts, begin, min(max(end, begin + 1), length))))
    return mask


def _touches(spans: Sequence[Span], starts: Sequence[int], begin: int, end: int) -> bool:
    last = bisect_right(starts, end - 1) - 1
    return last >= 0 and spans[last][1] > begin
