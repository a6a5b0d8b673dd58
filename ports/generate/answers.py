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

REWRITTEN = "the chat template changes with the text of an answer, expected one that inserts it"
Render = Callable[[Sequence[Message]], str]


def answer_spans(messages: Sequence[Message], render: Render) -> list[Span]:
    """Where the answers stand in ``render(messages)``; an empty answer has no span.

    A template may trim answers, be it one of them only: white space at either end of an answer belongs to it where the
    template keeps it.

    Raises:
        ConversationError: the text holds a mark, or the template does not give every answer as it is.
    """
    text = render(messages)
    if MARK.search(text):
        raise ConversationError("found a character that marks answers, expected a text without U+E0F0 and U+E0F1")
    marked = render([_mark(message) for message in messages])
    if MARK.sub("", marked) == text:
        return _spans(marked)
    marked = render([_as_inserted(messages, place, render, text) for place in range(len(messages))])
    if MARK.sub("", marked) != text:
        raise ConversationError(REWRITTEN)
    return _spans(marked)


def _as_inserted(messages: Sequence[Message], place: int, render: Render, text: str) -> Message:
    """The message there with marks around as much of it as the template leaves alone."""
    content = messages[place]["content"]
    for start, from_end in product(_edges(content), _edges(content[::-1])):
        marked = _mark(messages[place], start, from_end)
        if MARK.sub("", render([*messages[:place], marked, *messages[place + 1 :]])) == text:
            return marked
    raise ConversationError(REWRITTEN)


def _edges(content: str) -> list[int]:
    """How much white space a template may trim in front: nothing, or up to where another character begins."""
    space = content[: len(content) - len(content.lstrip())]
    return [0, *(place for place in range(1, len(space) + 1) if space[place - 1] != space[place : place + 1])]


def _mark(message: Message, start: int = 0, from_end: int = 0) -> Message:
    content = message["content"]
    if message["role"] != "assistant" or not content.strip():
        return message
    stop = len(content) - from_end
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
