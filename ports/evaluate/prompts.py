"""Prompts from a file: token ids, texts, or conversations up to the last turn of a user."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ports.errors import InputError, reason
from ports.files import check_regular, is_text, read_json
from ports.generate.chat import ChatFamily, load_family
from ports.generate.records import read_manifest
from ports.training.data.record_info import GENERATION

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
FORMS = "token ids, a text, or an object with prompt_token_ids, prompt, messages or conversations"

Message = dict[str, str]


def family_of(draft: Path, named: str = "") -> ChatFamily:
    """The chat family ``named``, else that of the records that a draft was trained on, as its directory keeps it.

    Raises:
        InputError: no such family, or a file of the draft that cannot be read.
    """
    file = draft / GENERATION
    if named or not file.is_file():
        return load_family(named or "auto")
    try:
        return ChatFamily.model_validate(read_manifest(file).chat)
    except ValidationError as error:
        raise InputError(file, "chat", reason(error), "a chat family") from error


def read_prompts(
    file: Path, tokenizer: Callable[[], Any], vocab_size: int, family: ChatFamily | None = None
) -> list[list[int]]:
    """Every prompt of a file as token ids.

    ``.txt`` holds a text a line, ``.jsonl`` a JSON value a line, ``.json`` an array of such values. A value is an array
    of token ids, a text, ``{"prompt_token_ids": [...]}``, ``{"prompt": "..."}``, or a conversation: ``messages`` with
    role and content, or ShareGPT's ``conversations`` with from and value. Of a conversation everything up to the
    last turn of a user is the prompt, in the tokenizer's chat template and what the family puts around it.

    Args:
        file: what to read.
        tokenizer: gives the verifier's, called when something other than ids is met.
        vocab_size: ids must lie in ``[0, vocab_size)``.
        family: default: the tokenizer's chat template alone.

    Raises:
        InputError: an unreadable file, no prompt in it, or one of another form.
    """
    reader = _Reader(file, tokenizer, vocab_size, family or ChatFamily())
    prompts = [reader.ids(field, value) for field, value in _values(file)]
    if not prompts:
        raise InputError(file, "prompts", "nothing", "at least one prompt")
    return prompts


def _values(file: Path) -> list[tuple[str, Any]]:
    expected = "a readable .txt, .jsonl or .json file"
    if file.suffix == ".json":
        content = read_json(file, "--prompts", expected)
        if not isinstance(content, list):
            raise InputError(file, "--prompts", type(content).__name__, "an array of prompts")
        return [(f"entry {number}", value) for number, value in enumerate(content)]
    check_regular(file, "--prompts")
    try:
        text = file.read_text(encoding="utf-8")
        lines = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [(field, json.loads(line) if file.suffix == ".jsonl" else line) for field, line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(file, "--prompts", reason(error), expected) from error


class _Reader:
    def __init__(self, file: Path, tokenizer: Callable[[], Any], vocab_size: int, family: ChatFamily) -> None:
        self.file, self.tokenizer, self.vocab_size, self.family = file, tokenizer, vocab_size, family

    def ids(self, field: str, value: Any) -> list[int]:
        """Token ids of one entry."""
        if isinstance(value, Mapping):
            return self._of_object(field, value)
        if isinstance(value, str):
            return self._tokenized(field, value)
        return self._checked(field, value)

    def _tokenized(self, field: str, text: str, **options: Any) -> list[int]:
        if not is_text(text):
            raise InputError(self.file, field, f"a lone surrogate in {ascii(text)[:60]}", "text")
        return self._checked(field, self.tokenizer()(text, **options)["input_ids"])

    def _of_object(self, field: str, value: Mapping[str, Any]) -> list[int]:
        if "prompt_token_ids" in value:
            return self._checked(field, value["prompt_token_ids"])
        if isinstance(value.get("prompt"), str):
            return self.ids(field, value["prompt"])
        if "messages" in value or "conversations" in value:
            return self._of_conversation(field, value)
        raise InputError(self.file, field, f"an object with {', '.join(map(str, value)) or 'nothing'}", FORMS)

    def _of_conversation(self, field: str, value: Mapping[str, Any]) -> list[int]:
        turns = prompt_of(_messages(self.file, field, value))
        if not turns:
            raise InputError(self.file, field, "no turn of a user", "a conversation")
        try:
            text = self.family.render(self.tokenizer(), self.family.opened(turns), add_generation_prompt=True)
        except Exception as error:  # templates raise errors of their own, and a tokenizer may have none
            raise InputError(self.file, field, reason(error), "a conversation that the chat template takes") from error
        return self._tokenized(field, text, add_special_tokens=False)

    def _checked(self, field: str, ids: Any) -> list[int]:
        if not isinstance(ids, list) or not ids or any(type(token) is not int for token in ids):
            raise InputError(self.file, field, repr(ids)[:80], FORMS)
        if not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise InputError(self.file, field, f"ids in [{min(ids)}, {max(ids)}]", f"[0, {self.vocab_size})")
        return ids


def _messages(file: Path, field: str, value: Mapping[str, Any]) -> list[Message]:
    name, role, content = ("messages", "role", "content") if "messages" in value else ("conversations", "from", "value")
    expected = f"turns with {role} and {content}"
    try:
        messages = [{"role": ROLES[turn[role]], "content": turn[content]} for turn in value[name]]
    except (KeyError, TypeError) as error:
        raise InputError(file, f"{field} {name}", f"{type(error).__name__} {error}", expected) from error
    for message in messages:
        if not isinstance(message["content"], str):
            raise InputError(file, f"{field} {name}", f"{content} {message['content']!r:.40}", f"{expected}, a text")
    return messages


def prompt_of(messages: Sequence[Message]) -> list[Message]:
    """The turns up to the last one of a user, without answers that come before any user; empty without a user."""
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        return []
    first, end = roles.index("user"), len(roles) - roles[::-1].index("user")
    system = [message for message in messages[:first] if message["role"] == "system"]
    return [*system, *messages[first:end]]
