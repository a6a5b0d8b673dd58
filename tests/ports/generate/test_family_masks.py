"""Masks of the families that came with other architectures, against dialogues written out piece by piece."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from parity.fixtures.architectures import ARCHITECTURES
from parity.fixtures.tokenizer import byte_level_bpe
from ports.generate.chat import ChatFamily, Encoder, load_family
from ports.generate.conversations import ConversationError, Message

TEXT = st.text(alphabet="ab .,\n\té漢🙂x1", max_size=10)
ANSWER = st.one_of(st.sampled_from(["Yes.", " Yes.", "", " ", "\n", "\n\nYes.\n", "Yes.\n\n"]), TEXT)
Piece = tuple[str, bool]
"""A text, and whether it is an answer's."""


@st.composite
def dialogues(draw) -> list[Message]:
    """System or not, questions and answers that repeat or are empty, an open ending or not, two answers in a row."""
    system = [{"role": "system", "content": text} for text in draw(st.lists(TEXT, max_size=1))]
    roles = draw(st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=5))
    return [*system, *({"role": role, "content": draw(ANSWER if role == "assistant" else TEXT)} for role in roles)]


@functools.cache
def encoder(name: str) -> Encoder:
    architecture = ARCHITECTURES[name]
    special = {"bos_token": architecture.chat.begin} if architecture.chat.begin else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(architecture.chat), **special)
    fast.chat_template = architecture.chat.template
    return Encoder(fast, load_family(architecture.family))


def qwen3(turns: list[Message]) -> Iterator[Piece]:
    """ChatML. An answer that ends the dialogue, and a question went before it, comes after an empty thought."""
    asked = max((place for place, turn in enumerate(turns) if turn["role"] == "user"), default=len(turns))
    for place, turn in enumerate(turns):
        yield f"<|im_start|>{turn['role']}\n", False
        answer, content = turn["role"] == "assistant", turn["content"]
        if answer and place == len(turns) - 1 and place > asked:
            yield "<think>\n\n</think>\n\n", False
            content = content.lstrip("\n")
        yield content, answer
        yield "<|im_end|>\n", False


def gpt_oss(turns: list[Message]) -> Iterator[Piece]:
    """harmony. What the user calls system is the developer's; the dialogue ends with <|return|>."""
    yield "<|start|>system<|message|>You are ChatGPT.\nCurrent date: 2025-08-05\n\nReasoning: medium<|end|>", False
    for place, turn in enumerate(turns):
        if turn["role"] == "system":
            yield f"<|start|>developer<|message|># Instructions\n\n{turn['content']}\n\n<|end|>", False
            continue
        answer = turn["role"] == "assistant"
        yield "<|start|>assistant<|channel|>final<|message|>" if answer else "<|start|>user<|message|>", False
        yield turn["content"], answer
        yield "<|return|>" if answer and place == len(turns) - 1 else "<|end|>", False


def llama4(turns: list[Message]) -> Iterator[Piece]:
    """A header, the text as it is, <|eot|>."""
    yield "<|begin_of_text|>", False
    for place, turn in enumerate(turns):
        yield f"<|header_start|>{turn['role']}<|header_end|>\n\n", False
        system = turn["role"] == "system" and place == 0
        yield turn["content"].strip() if system else turn["content"], turn["role"] == "assistant"
        yield "<|eot|>", False


WRITERS = {"qwen3": qwen3, "gpt_oss": gpt_oss, "llama4": llama4}


def expected(pieces: list[Piece], tokens: list[bytes]) -> list[int]:
    """1 on every token that holds a byte of an answer; one of white space alone is none."""
    flags = b"".join(bytes([answer and bool(text.strip())]) * len(text.encode()) for text, answer in pieces)
    mask, reached = [], 0
    for token in tokens:
        mask.append(int(any(flags[reached : reached + len(token)])))
        reached += len(token)
    return mask


def bytes_of(fast: PreTrainedTokenizerFast, ids: list[int]) -> list[bytes]:
    """Every token as the bytes it stands for."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    alphabet = {**{chr(byte): byte for byte in own}, **{chr(256 + i): byte for i, byte in enumerate(others)}}
    special = set(fast.get_added_vocab())
    tokens = fast.convert_ids_to_tokens(ids)
    return [token.encode() if token in special else bytes(alphabet[sign] for sign in token) for token in tokens]


@pytest.mark.parametrize("name", WRITERS)
@hypothesis_settings(max_examples=150, deadline=None)
@given(turns=dialogues())
def test_exactly_the_answers_are_in_the_loss(name: str, turns) -> None:
    pieces = list(WRITERS[name](turns))
    encoded = encoder(name)(turns)
    assert encoded.text == "".join(text for text, _ in pieces)
    tokens = bytes_of(encoder(name).tokenizer, encoded.ids)
    assert b"".join(tokens).decode() == encoded.text
    assert encoded.loss_mask == expected(pieces, tokens)


@pytest.mark.parametrize("name", WRITERS)
def test_headers_and_ends_of_turns_are_not(name: str) -> None:
    turns = [{"role": role, "content": "Yes."} for role in ("system", "user", "assistant", "user", "assistant")]
    encoded = encoder(name)(turns)
    answer = encoder(name).tokenizer("Yes.", add_special_tokens=False)["input_ids"]
    assert [token for token, on in zip(encoded.ids, encoded.loss_mask) if on] == answer * 2


@pytest.mark.parametrize("name", WRITERS)
def test_the_oracle_sees_a_shifted_mask(name: str) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Yes."}]
    encoded = encoder(name)(turns)
    wanted = expected(list(WRITERS[name](turns)), bytes_of(encoder(name).tokenizer, encoded.ids))
    assert sum(wanted) > 0
    assert wanted != [0, *encoded.loss_mask[:-1]]


def test_only_the_answer_that_the_template_trims_loses_its_line_breaks() -> None:
    """Qwen 3 trims the last answer and no other."""
    turns = [{"role": role, "content": "\nYes."} for role in ("user", "assistant", "user", "assistant")]
    encoded = encoder("qwen3")(turns)
    tokens = encoder("qwen3").tokenizer.convert_ids_to_tokens(encoded.ids)
    assert [token for token, on in zip(tokens, encoded.loss_mask) if on] == ["ĊĊ", "Y", "es", ".", "Y", "es", "."]


def test_an_answer_with_a_thought_that_the_template_takes_apart_is_refused() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nWell.\n</think>\n\nYes."}]
    with pytest.raises(ConversationError, match="repeats or splits an answer"):
        encoder("qwen3")(turns)


def test_harmony_without_a_fixed_date_differs_from_day_to_day() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Yes."}]
    fixed = encoder("gpt_oss")
    assert "Current date: 2025-08-05" in fixed(turns).text
    loose = Encoder(fixed.tokenizer, ChatFamily())
    assert "Current date: 2025-08-05" not in loose(turns).text
