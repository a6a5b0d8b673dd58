"""From a dialogue to token ids and a loss mask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from ports.errors import InputError
from ports.files import is_text
from ports.generate.answers import Span, answer_spans, mask_of
from ports.generate.conversations import ConversationError, Message
from ports.generate.families import ChatFamily, Offsets
from ports.generate.prototype_masks import first_match_mask, offsets_mask

GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\b")


class LossMask(str, Enum):
    """``EXACT``: the answers' tokens. ``PROTOTYPE``: what the prototypes' masks are for the family."""

    EXACT = "exact"
    PROTOTYPE = "prototype"


@dataclass(frozen=True)
class Encoded:
    """A dialogue: ``ids`` [T] and ``loss_mask`` [T] of 0 and 1, and the text they come from."""

    ids: list[int]
    loss_mask: list[int]
    text: str = ""


class Encoder:
    """Renders a dialogue with the tokenizer's chat template, else the family's, and masks its answers.

    Raises:
        InputError: no chat template, a tokenizer that has no offsets, or a family without a prototype mask
            where that is asked for.
    """

    def __init__(
        self,
        tokenizer: Any,
        family: ChatFamily,
        loss_mask: LossMask = LossMask.EXACT,
        leading_space: bool = False,
        max_length: int | None = None,
    ) -> None:
        self.tokenizer, self.family, self.loss_mask = tokenizer, family, loss_mask
        self.leading_space, self.max_length = leading_space, max_length
        name = getattr(tokenizer, "name_or_path", "tokenizer")
        self.template = family.checked_template(tokenizer)
        if loss_mask is LossMask.EXACT and not getattr(tokenizer, "is_fast", False):
            raise InputError(name, "is_fast", "a tokenizer without offsets", "a fast tokenizer, for --loss_mask exact")
        if loss_mask is LossMask.PROTOTYPE and family.prototype_mask is None:
            raise InputError("command line", "--loss_mask", "prototype", "a family with a prototype_mask")

    def __call__(self, messages: Sequence[Message]) -> Encoded:
        """Encode one dialogue, cut to ``max_length`` tokens.

        Raises:
            ConversationError: the template refuses the dialogue, or there is no telling where its answers are.
        """
        turns = self._turns(messages)
        encoded = self._exact(turns) if self.loss_mask is LossMask.EXACT else self._prototype(turns)
        if not encoded.ids:
            raise ConversationError("found no tokens, expected at least one")
        cut = slice(self.max_length)
        return Encoded(encoded.ids[cut], encoded.loss_mask[cut], encoded.text)

    def _turns(self, messages: Sequence[Message]) -> list[Message]:
        """The dialogue with the family's system message, and a space before answers if asked for."""
        return self.family.opened([self._spaced(message) for message in messages])

    def _spaced(self, message: Message) -> Message:
        if not self.leading_space or message["role"] != "assistant":
            return message
        return {**message, "content": " " + message["content"]}

    def render(self, turns: Sequence[Message]) -> str:
        """The text of a dialogue; a template's complaint is a ConversationError, and so is what is no text."""
        try:
            text = self.family.render(self.tokenizer, turns)
        except Exception as error:  # jinja's, whatever a template raises
            raise ConversationError(f"the chat template refuses it: {' '.join(str(error).split())[:200]}") from error
        if not is_text(text):
            raise ConversationError(f"found a lone surrogate in {ascii(text)[:60]}, expected text")
        return text

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _exact(self, turns: Sequence[Message]) -> Encoded:
        text = self.render(turns)
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = self._generation_blocks(turns) if self._has_blocks() else answer_spans(turns, self.render)
        return Encoded(list(tokens["input_ids"]), mask_of(spans, tokens["offset_mapping"], len(text)), text)

    def _has_blocks(self) -> bool:
        return GENERATION_BLOCK.search(self.template) is not None

    def _generation_blocks(self, turns: Sequence[Message]) -> list[Span]:
        """Where the template says that the assistant speaks, with ``{% generation %}``.

        ``return_assistant_tokens_mask`` would go on from here with ``char_to_token``, which knows no token for white
        space that a tokenizer trims from its offsets: such a mask runs to the end of the text, or stops short.
        """
        _, blocks = render_jinja_template(
            conversations=[list(turns)],
            chat_template=self.template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
            **self.family.variables,
        )
        return [(start, stop) for start, stop in blocks[0]]

    def _prototype(self, turns: Sequence[Message]) -> Encoded:
        text, rule = self.render(turns), self.family.prototype_mask
        ids = self._plain(text)
        if isinstance(rule, Offsets):
            mask = offsets_mask(text, len(ids), rule, lambda piece: list(self.tokenizer(piece)["input_ids"]))
        elif rule is not None:
            mask = first_match_mask(text, ids, rule, self._plain)
        return Encoded(ids, mask, text)
