"""From a dialogue to token ids and a loss mask: what a family's template writes, and which tokens are answers.

An exact mask finds answers with the chat template itself: it is rendered a second time with marks around every answer,
and what lies between the marks is the answer. The marks must leave the rest of the text as it was; otherwise there is
no mask. The prototypes' masks are their family's (:mod:`ports.generate.families`). T is the number of tokens of a
dialogue; a mask is T numbers, 0 or 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import Any

import numpy as np
from transformers.utils.chat_template_utils import render_jinja_template

from ports.errors import InputError
from ports.files import is_text
from ports.generate.conversations import ConversationError, Message
from ports.generate.families import ChatFamily, name_of
from ports.generate.rendering import rendered

GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\b")

OPEN, CLOSE = "\ue0f0", "\ue0f1"
"""Two characters of Unicode's private use area."""

MARK = re.compile(f"[{OPEN}{CLOSE}]")
REWRITTEN = "the chat template changes with the text of an answer, expected one that inserts it"

Span = tuple[int, int]
"""Characters [start, stop) of a text."""

Render = Callable[[Sequence[Message]], str]


class LossMask(str, Enum):
    """``EXACT``: the answers' tokens. ``PROTOTYPE``: what the prototypes' masks are for the family."""

    EXACT = "exact"
    PROTOTYPE = "prototype"


@dataclass(frozen=True)
class Encoded:
    """A dialogue: ``ids`` [T] and ``loss_mask`` [T] of 0 and 1, the text they come from, and how many answers of it
    were ``cut`` where they were made."""

    ids: list[int]
    loss_mask: list[int]
    text: str = ""
    cut: int = 0


@dataclass
class Encoder:
    """Renders a dialogue with the tokenizer's chat template, else the family's, and masks its answers.

    ``leading_space`` puts a space before every answer; more than ``max_length`` tokens are cut off. Of an answer whose
    ``finish_reason`` is "length" the verifier never said the end that the template puts after it: an exact mask leaves
    out the token before it, and where it is the dialogue's last, all ends there.

    Raises:
        InputError: no chat template, a tokenizer that has no offsets, or a family without a prototype mask
            where that is asked for.
    """

    tokenizer: Any
    family: ChatFamily
    loss_mask: LossMask = LossMask.EXACT
    leading_space: bool = False
    max_length: int | None = None

    def __post_init__(self) -> None:
        self.family.checked_template(self.tokenizer)
        if self.loss_mask is LossMask.EXACT and not getattr(self.tokenizer, "is_fast", False):
            expected = "a fast tokenizer, for --loss-mask exact"
            raise InputError(name_of(self.tokenizer), "is_fast", "a tokenizer without offsets", expected)
        if self.loss_mask is LossMask.PROTOTYPE and self.family.prototype_mask is None:
            raise InputError("command line", "--loss-mask", "prototype", "a family with a prototype_mask")

    def __call__(self, messages: Sequence[Message]) -> Encoded:
        """Encode one dialogue.

        Raises:
            ConversationError: the template refuses the dialogue, or there is no telling where its answers are.
        """
        space = {"assistant": " "} if self.leading_space else {}
        spaced = [{"role": each["role"], "content": space.get(each["role"], "") + each["content"]} for each in messages]
        turns, cut = self.family.opened(spaced), [each.get("finish_reason") == "length" for each in messages]
        text = self.render(turns)
        ids, mask = self._exact(text, turns, cut) if self.loss_mask is LossMask.EXACT else self._prototype(text)
        if not ids:
            raise ConversationError("found no tokens, expected at least one")
        return Encoded(ids[: self.max_length], mask[: self.max_length], text, sum(cut))

    def render(self, turns: Sequence[Message]) -> str:
        """The text of a dialogue; a template's complaint is a ConversationError, and so is what is no text."""
        try:
            text = self.family.render(self.tokenizer, turns)
        except InputError:
            raise
        except Exception as error:  # jinja's, whatever a template raises
            raise ConversationError(f"the chat template refuses it: {' '.join(str(error).split())[:200]}") from error
        if not is_text(text):
            raise ConversationError(f"found a lone surrogate in {ascii(text)[:60]}, expected text")
        return text

    def _exact(self, text: str, turns: Sequence[Message], cut: Sequence[bool]) -> tuple[list[int], list[int]]:
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        template = self.family.checked_template(self.tokenizer)
        blocks = GENERATION_BLOCK.search(template) is not None
        spans = self._generation_blocks(template, turns) if blocks else answer_spans(turns, self.render)
        ids, mask = list(tokens["input_ids"]), mask_of(spans, tokens["offset_mapping"], len(text))
        for place, span in _cut_spans(text, spans, turns[-len(cut) :], cut) if any(cut) else ():
            own = mask_of([span], tokens["offset_mapping"], len(text))
            reached = max(at for at, inside in enumerate(own) if inside)
            if place == len(cut) - 1:
                return ids[: reached + 1], mask[: reached + 1]
            end = mask.index(0, reached) if 0 in mask[reached:] else len(mask)  # a block may hold the end of a turn
            mask[reached:end] = [0] * (end - reached)
        return ids, mask

    def _generation_blocks(self, template: str, turns: Sequence[Message]) -> list[Span]:
        """Where the template says that the assistant speaks, with ``{% generation %}``.

        ``return_assistant_tokens_mask`` would go on from here with ``char_to_token``, which knows no token for white
        space that a tokenizer trims from its offsets: such a mask runs to the end of the text, or stops short.
        """
        found: list[Span] = []

        def render() -> str:
            texts, blocks = render_jinja_template(
                conversations=[list(turns)],
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
                **self.family.variables,
            )
            found.extend((start, stop) for start, stop in blocks[0])
            return str(texts[0])

        rendered(self.tokenizer, turns, render)
        return found

    def _prototype(self, text: str) -> tuple[list[int], list[int]]:
        ids, rule = list(self.tokenizer(text, add_special_tokens=False)["input_ids"]), self.family.prototype_mask
        assert rule is not None  # refused at the start
        return ids, rule.mask(text, ids, self.tokenizer)


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
    if MARK.sub("", marked) != text:
        marked = render([_as_inserted(messages, place, render, text) for place in range(len(messages))])
    if MARK.sub("", marked) != text:
        raise ConversationError(REWRITTEN)
    marks = list(MARK.finditer(marked))
    if [mark.group() for mark in marks] != [OPEN, CLOSE] * (len(marks) // 2):
        raise ConversationError("the chat template repeats or splits an answer, expected each of them once")
    places = [mark.start() - number for number, mark in enumerate(marks)]  # in the text without them
    return list(zip(places[::2], places[1::2]))


def _cut_spans(
    text: str, spans: Sequence[Span], turns: Sequence[Message], cut: Sequence[bool]
) -> list[tuple[int, Span]]:
    """The places among ``turns`` of the answers that were ``cut``, in order, and where in ``text`` what was said is.

    Raises:
        ConversationError: the template shows another number of answers, so that there is no telling.
    """
    said = [place for place, turn in enumerate(turns) if turn["role"] == "assistant" and turn["content"].strip()]
    shown = [span for span in spans if text[slice(*span)].strip()]
    if len(said) != len(shown):
        raise ConversationError(f"found {len(shown)} answers in the text, expected {len(said)}, to tell which were cut")
    found = []
    for place, (start, stop) in zip(said, shown, strict=True):
        words = turns[place]["content"].strip()
        at = text.rfind(words, start, stop)
        if cut[place]:
            found.append((place, (start, stop if at < 0 else at + len(words))))
    return found


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


def mask_of(spans: Sequence[Span], offsets: Sequence[Span], length: int) -> list[int]:
    """1 on every token that holds a character of an answer.

    Args:
        spans: the answers.
        offsets: each token's characters, as the tokenizer says. What no token claims (white space, with tokenizers
            that trim offsets) belongs to the next one.
        length: of the text.
    """
    answering, mask, reached = np.zeros(length, dtype=bool), [], 0
    for start, stop in spans:
        answering[start:stop] = True
    for start, stop in offsets:
        begin, end = min(start, reached), max(stop, reached)
        reached = end
        mask.append(int(answering[begin : max(end, begin + 1)].any()))
    return mask
