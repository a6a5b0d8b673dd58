"""Chat families: what stands around a dialogue, and the prototypes' own rules for which of its tokens are answers.

The prototypes' masks are computed as theirs, right or not; see ``hard-coded-offsets`` and ``first-match-mask`` in
docs/deviations.md. T is the number of tokens of a dialogue; a mask is T numbers, 0 or 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ports.errors import InputError
from ports.files import read_yaml
from ports.generate.conversations import ConversationError, Message
from ports.generate.rendering import rendered

TABLE = Path(__file__).parent / "families.yaml"

FRAME = re.compile(r"<\|\w+\|>")
"""A token around a turn, as templates write them."""


class Offsets(BaseModel):
    """The prototypes' rule for Llama: token counts of the text between two hard-coded headers."""

    model_config = ConfigDict(extra="forbid")

    rule: Literal["offsets"]
    user: str
    answer: str

    def mask(self, text: str, ids: Sequence[int], tokenizer: Any) -> list[int]:
        """Ones, less the stretches between answers, whose places are sums of token counts plus constants.

        The constants allow for the tokenizer's automatic special tokens.

        Args:
            text: the rendered dialogue.
            ids: its [T] tokens.
            tokenizer: counts.

        Raises:
            ConversationError: no user turn, where the prototype stops with an IndexError.
        """
        opening, *turns = text.split(self.user)
        if not turns:
            raise ConversationError(f"found no {self.user!r}, expected a turn of the user")
        turns[0] = opening + self.user + turns[0]
        mask, reached = np.ones(len(ids), dtype=int), 1
        mask[:1] = 0
        for number, turn in enumerate(turns):
            prompt, *answers = turn.split(self.answer)
            if turn == "" or len(answers) != 1:
                break
            prompt_length = len(tokenizer(prompt + self.answer)["input_ids"]) - 1
            if number == 0:
                mask[reached : reached + prompt_length - 2] = 0
            else:
                mask[reached - 3 : reached + prompt_length + 1] = 0
            reached += len(tokenizer(turn)["input_ids"]) + (3 if number else 0)
        mask[reached:] = 0
        return list(map(int, mask))


class FirstMatch(BaseModel):
    """The prototypes' rule for Qwen and Mistral: where an answer's tokens occur first."""

    model_config = ConfigDict(extra="forbid")

    rule: Literal["first_match"]
    after: str
    before: str

    def mask(self, text: str, ids: Sequence[int], tokenizer: Any) -> list[int]:
        """Ones where the tokens of each answer occur first in ``ids``; arguments as in :meth:`Offsets.mask`.

        Raises:
            ConversationError: an answer tokenizes differently by itself, where the prototype stops with an IndexError.
        """
        mask, between = [0] * len(ids), re.compile(f"{re.escape(self.after)}(.*?){re.escape(self.before)}", re.DOTALL)
        for answer in between.findall(text):
            wanted = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
            size = len(wanted)
            first = next((at for at in range(len(ids) - size + 1) if ids[at : at + size] == wanted), None)
            if first is None:
                raise ConversationError(f"found no occurrence of the {size} tokens of an answer, expected one")
            mask[first : first + size] = [1] * size
        return mask


class ChatFamily(BaseModel):
    """One entry of the table; see ``families.yaml``."""

    model_config = ConfigDict(extra="forbid")

    system: str | None = None
    template: str | None = None
    template_options: dict[str, Any] = Field(default_factory=dict)
    today: date | None = None
    prototype_mask: Annotated[Offsets | FirstMatch, Field(discriminator="rule")] | None = None

    @property
    def variables(self) -> dict[str, Any]:
        """What the chat template is given; a template that asks for the date gets ``today``, on every day the same."""
        return self.template_options | ({} if self.today is None else {"strftime_now": self.today.strftime})

    def opened(self, messages: Sequence[Message]) -> list[Message]:
        """The dialogue after the family's system message, unless it has one of its own."""
        own = bool(messages) and messages[0]["role"] == "system"
        return [*([] if own or self.system is None else [{"role": "system", "content": self.system}]), *messages]

    def checked_template(self, tokenizer: Any) -> str:
        """The tokenizer's own chat template, else the family's.

        Raises:
            InputError: neither has one.
        """
        if getattr(tokenizer, "chat_template", None):
            return str(tokenizer.get_chat_template())
        if self.template is None:
            fitting = " or ".join(_families_for(tokenizer)) or "FILE.yaml:NAME, a family with one"
            expected = f"a tokenizer with a chat template, or --chat-template {fitting}"
            raise InputError(name_of(tokenizer), "chat_template", "nothing", expected)
        return self.template

    def render(self, tokenizer: Any, messages: Sequence[Message], **options: Any) -> str:
        """The text of a dialogue; whatever the template raises, it may.

        Raises:
            InputError: as :meth:`checked_template` and :func:`ports.generate.rendering.rendered`.
        """
        own = {"tokenize": False, "chat_template": self.checked_template(tokenizer)}

        def render() -> str:
            return str(tokenizer.apply_chat_template(list(messages), **self.variables, **options, **own))

        return rendered(tokenizer, messages, render)

    def prompt_ids(self, tokenizer: Any, messages: Sequence[Message]) -> list[int]:
        """The dialogue, opened, up to where the assistant speaks; raises as :meth:`render`, and if it is nothing."""
        text = self.render(tokenizer, self.opened(messages), add_generation_prompt=True)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            expected = "a template that writes the turns out"
            raise InputError(name_of(tokenizer), "chat_template", f"no token of {len(messages)} turns", expected)
        return ids


def _families_for(tokenizer: Any) -> list[str]:
    """Those of the table whose template is made of tokens that the verifier was trained with."""
    known, entries = tokenizer.get_vocab(), read_yaml(TABLE, "chat_template", "a mapping of families by name")
    templates = {name: entry["template"] for name, entry in entries.items() if "template" in entry}
    return [name for name, text in templates.items() if set(FRAME.findall(text)) <= known.keys()]


def name_of(tokenizer: Any) -> str:
    """What a refusal calls it: where it was read from."""
    return getattr(tokenizer, "name_or_path", "tokenizer")


def load_family(name: str) -> ChatFamily:
    """The family of that name in the table, or in ``FILE.yaml:NAME``.

    Raises:
        InputError: unreadable table, unknown name, or an entry with a wrong key or value.
    """
    file, _, entry = name.rpartition(":")
    table = Path(file) if file else TABLE
    entries = read_yaml(table, "chat_template", "a mapping of families by name")
    if entry not in entries:
        raise InputError(table, "chat_template", entry, f"one of {', '.join(entries)}, or FILE.yaml:NAME")
    try:
        return ChatFamily.model_validate(entries[entry])
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([entry, *map(str, first["loc"])])
        raise InputError(table, field, repr(first.get("input"))[:80], first["msg"]) from error
