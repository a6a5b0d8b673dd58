"""Prompts from a file: token ids, texts, conversations up to the last turn of a user, and questions of benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ports.errors import InputError, reason
from ports.files import check_regular, read_json
from ports.generate.conversations import ConversationError, Message, dialogue_of, form_of
from ports.generate.families import ChatFamily, load_family
from ports.training.records import GENERATION
from ports.verifier.config import verifier_config
from ports.verifier.tokenizer import open_tokenizer

FORMS = (
    "token ids, a text, or an object with prompt_token_ids, prompt, messages, conversations, turns, question or text"
)


def family_of(draft: Path, named: str = "") -> ChatFamily:
    """The chat family ``named``, else that of the records that a draft was trained on, as its directory keeps it.

    Raises:
        InputError: no such family, or a file of the draft that cannot be read.
    """
    file = draft / GENERATION
    if named or not file.is_file():
        return load_family(named or "auto")
    content = read_json(file, "manifest", "what speculator records wrote")
    try:
        return ChatFamily.model_validate(content.get("chat", {}))
    except (ValidationError, AttributeError) as error:
        raise InputError(file, "chat", reason(error), "a chat family") from error


@dataclass(frozen=True)
class Prompt:
    """Token ``ids``, and what makes the next prompt from their answer's ids where a user asks on."""

    ids: list[int]
    ask_on: Callable[[list[int]], Prompt] | None = None


def read_files(
    files: Sequence[Path], verifier: str, family: ChatFamily, longest: int, limit: int | None = None
) -> list[list[Prompt]]:
    """Of each file what :func:`read_questions` gives for the verifier's tokenizer and vocabulary.

    Raises:
        InputError: see there; or all prompts of a file have more than ``longest`` tokens.
    """
    vocab_size, tokenizer = verifier_config(verifier).vocab_size, cache(lambda: open_tokenizer(verifier))
    entries = [read_questions(file, tokenizer, vocab_size, family, limit) for file in files]
    for file, prompts in zip(files, entries):
        shortest = min(len(prompt.ids) for prompt in prompts)
        if shortest > longest:
            raise InputError(file, "prompts", f"{shortest} tokens and more", f"at most {longest} tokens")
    return entries


def read_questions(
    file: Path,
    tokenizer: Callable[[], Any],
    vocab_size: int,
    family: ChatFamily | None = None,
    limit: int | None = None,
) -> list[Prompt]:
    """Every prompt of a file as token ids.

    ``.txt`` holds a text a line, ``.jsonl`` a JSON value a line, ``.json`` an array of such values. A value is an array
    of token ids, a text, ``{"prompt_token_ids": [...]}``, ``{"prompt": "..."}``, or a conversation: ``messages`` with
    role and content, ShareGPT's ``conversations`` with from and value, GSM8K's ``question``, a user's ``text``, or
    EAGLE's ``turns`` of a user, each of which is asked once the one before it is answered. Of a conversation everything
    up to the last turn of a user is the prompt, in the tokenizer's chat template and what the family puts around it.

    Args:
        file: what to read.
        tokenizer: gives the verifier's, called when something other than ids is met.
        vocab_size: ids must lie in ``[0, vocab_size)``.
        family: default: the tokenizer's chat template alone.
        limit: take the first entries only.

    Raises:
        InputError: an unreadable file, no prompt in it, or one of another form.
    """
    asker = _Asker(tokenizer, vocab_size, family or ChatFamily())
    prompts = []
    for field, value in _values(file)[:limit]:
        try:
            prompts.append(asker.prompt(value))
        except ConversationError as error:
            raise InputError(file, field, error, FORMS) from error
    if not prompts:
        raise InputError(file, "prompts", "nothing", "at least one prompt")
    return prompts


def _values(file: Path) -> list[tuple[str, Any]]:
    """Fields and values."""
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


@dataclass(frozen=True)
class _Asker:
    """What makes ids of values; a ConversationError says what a value has instead of a prompt."""

    tokenizer: Callable[[], Any]
    vocab_size: int
    family: ChatFamily

    def prompt(self, value: Any) -> Prompt:
        """The first prompt that a value holds."""
        if isinstance(value, Mapping) and "prompt_token_ids" in value:
            return Prompt(self._checked(value["prompt_token_ids"]))
        if isinstance(value, Mapping) and isinstance(value.get("prompt"), str):
            value = value["prompt"]
        if isinstance(value, str):
            text = dialogue_of({"prompt": value})[0]["content"]
            return Prompt(self._checked(self.tokenizer()(text)["input_ids"]))
        if not isinstance(value, Mapping):
            return Prompt(self._checked(value))
        said = dialogue_of(value)
        return self._asked([], said) if form_of(value) == "turns" else Prompt(self._rendered(said))

    def _asked(self, before: list[Message], turns: Sequence[Message]) -> Prompt:
        """The first of a user's ``turns`` after what was said before."""
        said = [*before, turns[0]]

        def ask_on(answer: list[int]) -> Prompt:
            text = self.tokenizer().decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            return self._asked([*said, {"role": "assistant", "content": text}], turns[1:])

        return Prompt(self._rendered(said), ask_on if turns[1:] else None)

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the turns up to the last one of a user."""
        ends = [place for place, message in enumerate(messages, 1) if message["role"] == "user"]
        if not ends:
            raise ConversationError("no turn of a user")
        try:
            return self._checked(self.family.prompt_ids(self.tokenizer(), messages[: ends[-1]]))
        except Exception as error:  # templates raise errors of their own, and a tokenizer may have none
            raise ConversationError(reason(error)) from error

    def _checked(self, ids: Any) -> list[int]:
        """Token ids, every one of them the verifier's."""
        if not isinstance(ids, list) or not ids or any(type(token) is not int for token in ids):
            raise ConversationError(repr(ids)[:80])
        if not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ConversationError(f"ids in [{min(ids)}, {max(ids)}], not all in [0, {self.vocab_size})")
        return ids
