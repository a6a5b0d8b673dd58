"""Exact masks on random dialogues, against an oracle that reads the tokens' bytes and no offsets."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from parity.fixtures.dialogues import TEMPLATES, UNKNOWN
from parity.fixtures.tokenizer import BEGIN_OF_TEXT, BEGIN_OF_TEXT_ID, SPECIAL_TOKENS, byte_level_bpe
from ports.errors import InputError
from ports.generate.chat import CLOSE, OPEN, ChatFamily, Encoder, LossMask
from ports.generate.conversations import ConversationError

BLOCKS = """\
{{- bos_token -}}
{%- for m in messages -%}
    {{- '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' -}}
    {%- if m.role == 'assistant' -%}{%- generation -%}{{- m.content | trim -}}{%- endgeneration -%}
    {%- else -%}{{- m.content | trim -}}{%- endif -%}
    {{- '<|eot_id|>' -}}
{%- endfor -%}
"""
TEXT = st.text(alphabet="ab .,\n\té漢🙂x1", max_size=12)
ANSWER = st.one_of(st.sampled_from(["Yes.", " Yes.", "", " ", "\n", "Yes.\n\n"]), TEXT)


@st.composite
def dialogues(draw) -> list[dict[str, str]]:
    """System or not, answers that repeat or are empty, an open ending or not, even two answers in a row."""
    system = draw(st.lists(TEXT, max_size=1))
    roles = draw(st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=6))
    turns = [{"role": role, "content": draw(ANSWER if role == "assistant" else TEXT)} for role in roles]
    return [*({"role": "system", "content": text} for text in system), *turns]


@functools.cache
def tokenizer(begin: bool, trim: bool, template: str) -> PreTrainedTokenizerFast:
    model = byte_level_bpe()
    first = processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A" if begin else "$A", special_tokens=[(BEGIN_OF_TEXT, BEGIN_OF_TEXT_ID)]
    )
    model.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim), first])
    fast = PreTrainedTokenizerFast(tokenizer_object=model, bos_token=BEGIN_OF_TEXT)
    fast.chat_template = BLOCKS if template == "blocks" else TEMPLATES[template]
    return fast


def bytes_of(fast: PreTrainedTokenizerFast, ids: list[int]) -> list[bytes]:
    """Every token as the bytes it stands for."""
    tokens = fast.convert_ids_to_tokens(ids)
    return [token.encode() if token in SPECIAL_TOKENS else bytes(map(BYTE.__getitem__, token)) for token in tokens]


def _alphabet() -> dict[str, int]:
    """The byte-level alphabet: a printable byte is itself, the others follow 255 in order."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {**{chr(byte): byte for byte in own}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


BYTE = _alphabet()
assert sorted(BYTE) == sorted(pre_tokenizers.ByteLevel.alphabet())


def expected(turns, template: str, pieces: list[bytes]) -> list[int]:
    """The dialogue written out piece by piece, every byte of it an answer's or not."""
    text = b"".join(pieces)
    answering, at = bytearray(len(text)), 0
    last = len(turns) - 1
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        content = turn["content"] if template == "qwen" else turn["content"].strip()
        before = {"qwen": "<|im_start|>assistant\n", "mistral": "[/INST]"}.get(
            template, "<|start_header_id|>assistant<|end_header_id|>\n\n"
        )
        before += "<think>\n\n</think>\n\n" if template == "qwen" and number == last else ""
        start = text.index(before.encode() + content.encode(), at) + len(before.encode())
        stop = start + len(content.encode())
        at = stop
        if content.strip():
            answering[start:stop] = b"\1" * (stop - start)
    mask, reached = [], 0
    for piece in pieces:
        mask.append(int(any(answering[reached : reached + len(piece)])))
        reached += len(piece)
    return mask


@pytest.mark.parametrize("template", ["llama", "qwen", "blocks"])
@pytest.mark.parametrize("trim", [False, True], ids=["all offsets", "trimmed offsets"])
@pytest.mark.parametrize("begin", [False, True], ids=["no BOS", "automatic BOS"])
@hypothesis_settings(max_examples=60, deadline=None)
@given(turns=dialogues())
def test_exactly_the_answers_are_in_the_loss(begin: bool, trim: bool, template: str, turns) -> None:
    fast = tokenizer(begin, trim, template)
    encoded = Encoder(fast, ChatFamily())(turns)
    assert encoded.ids == fast.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert encoded.loss_mask == expected(turns, template, bytes_of(fast, encoded.ids))


@functools.cache
def spaced_tokenizer(prepend: str, begin: bool) -> PreTrainedTokenizerFast:
    """As SentencePiece's: spaces are characters of their own, one more is put first, and text is normalised."""
    symbols = sorted({*"ab .,x1Yesé漢🙂\n\t▁", *"".join(TEMPLATES.values()), *"systemuserassistantthink<>/"})
    merges = [("▁", "a"), ("Y", "e"), ("Ye", "s"), (".", ",")]
    pieces = [*SPECIAL_TOKENS, UNKNOWN, *symbols, *(left + right for left, right in merges)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    model = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNKNOWN))
    model.normalizer = normalizers.NFC()
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    model.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    if begin:
        pair = [(BEGIN_OF_TEXT, vocabulary[BEGIN_OF_TEXT])]
        model.post_processor = processors.TemplateProcessing(single=f"{BEGIN_OF_TEXT} $A", special_tokens=pair)
    fast = PreTrainedTokenizerFast(tokenizer_object=model, bos_token=BEGIN_OF_TEXT, unk_token=UNKNOWN)
    fast.chat_template = TEMPLATES["llama"]
    return fast


def spaced_text(fast: PreTrainedTokenizerFast, ids: list[int], text: str) -> list[bytes]:
    """Every token as it stands in ``text``, which the space that was put first does not."""
    pieces, at = [], 0
    for token in fast.convert_ids_to_tokens(ids):
        piece = token.replace("▁", " ")
        piece = piece if text.startswith(piece, at) else piece[1:]
        assert text.startswith(piece, at)
        pieces.append(piece.encode())
        at += len(piece)
    assert at == len(text)
    return pieces


@pytest.mark.parametrize("prepend", ["never", "first", "always"])
@pytest.mark.parametrize("begin", [False, True], ids=["no BOS", "automatic BOS"])
@hypothesis_settings(max_examples=60, deadline=None)
@given(turns=dialogues())
def test_a_tokenizer_that_puts_spaces_first_gives_the_same_answers(prepend: str, begin: bool, turns) -> None:
    fast = spaced_tokenizer(prepend, begin)
    encoded = Encoder(fast, ChatFamily())(turns)
    pieces = spaced_text(fast, encoded.ids, encoded.text)
    assert encoded.loss_mask == expected(turns, "llama", pieces)


def test_the_oracle_sees_a_shifted_mask() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Yes."}]
    fast = tokenizer(True, True, "llama")
    encoded = Encoder(fast, ChatFamily())(turns)
    assert sum(encoded.loss_mask) > 0
    assert expected(turns, "llama", bytes_of(fast, encoded.ids)) != [0, *encoded.loss_mask[:-1]]


def test_a_repeated_answer_is_marked_twice() -> None:
    turns = [{"role": role, "content": "Yes."} for role in ("user", "assistant", "user", "assistant")]
    fast = tokenizer(False, False, "llama")
    encoded = Encoder(fast, ChatFamily())(turns)
    answer = fast("Yes.", add_special_tokens=False)["input_ids"]
    assert [i for i, on in zip(encoded.ids, encoded.loss_mask) if on] == answer * 2


def test_a_template_that_rewrites_answers_is_refused() -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(), bos_token=BEGIN_OF_TEXT)
    fast.chat_template = "{% for m in messages %}{{ m.content | length }}{{ m.content }}{% endfor %}"
    with pytest.raises(ConversationError, match="changes with the text"):
        Encoder(fast, ChatFamily())([{"role": "assistant", "content": "Yes."}])


def test_a_template_that_repeats_an_answer_has_it_marked_twice() -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(), bos_token=BEGIN_OF_TEXT)
    fast.chat_template = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    encoded = Encoder(fast, ChatFamily())([{"role": "assistant", "content": "Yes."}])
    assert encoded.text == "Yes.Yes."
    assert all(encoded.loss_mask)


@pytest.mark.parametrize("mark", [OPEN, CLOSE])
def test_a_text_that_holds_a_mark_is_refused(mark) -> None:
    with pytest.raises(ConversationError, match="U\\+E0F0"):
        Encoder(tokenizer(False, False, "llama"), ChatFamily())([{"role": "user", "content": mark}])


def test_what_the_template_refuses_is_said() -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(), bos_token=BEGIN_OF_TEXT)
    fast.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ConversationError, match="roles must alternate"):
        Encoder(fast, ChatFamily())([{"role": "user", "content": "a"}])


def test_a_tokenizer_without_a_template_is_refused() -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe())
    with pytest.raises(InputError, match="chat_template: found nothing"):
        Encoder(fast, ChatFamily())


def test_a_family_without_a_prototype_mask_is_refused() -> None:
    with pytest.raises(InputError, match="--loss_mask: found prototype"):
        Encoder(tokenizer(True, True, "llama"), ChatFamily(), LossMask.PROTOTYPE)


def test_a_dialogue_is_cut_to_the_length_asked_for() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Yes."}]
    fast = tokenizer(True, True, "llama")
    whole, cut = (Encoder(fast, ChatFamily(), max_length=length)(turns) for length in (None, 7))
    assert (cut.ids, cut.loss_mask) == (whole.ids[:7], whole.loss_mask[:7])
