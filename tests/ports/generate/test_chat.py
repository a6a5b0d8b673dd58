"""Masks on random dialogues, against dialogues written out piece by piece and tokens read as bytes, with no offsets."""

import functools
import os
import resource
import signal
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from parity.fixtures.architectures import ARCHITECTURES, STUDIED
from parity.fixtures.dialogues import TEMPLATES, UNKNOWN
from parity.fixtures.tokenizer import BEGIN_OF_TEXT, BEGIN_OF_TEXT_ID, SPECIAL_TOKENS, byte_level_bpe
from ports.errors import InputError
from ports.generate.chat import CLOSE, OPEN, Encoder, LossMask
from ports.generate.conversations import ConversationError
from ports.generate.families import ChatFamily, load_family

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
ANSWER = st.one_of(st.sampled_from(["Yes.", " Yes.", "", " ", "\n", "\n\nYes.\n", "Yes.\n\n"]), TEXT)
EXAMPLES = int(os.environ.get("FUZZ", 20))
SHORT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Yes."}]

Piece = tuple[str, bool]
"""A text, and whether it is an answer's."""


@st.composite
def dialogues(draw):
    """System or not, answers that repeat or are empty, an open ending or not, even two answers in a row."""
    system = [{"role": "system", "content": text} for text in draw(st.lists(TEXT, max_size=1))]
    roles = draw(st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=6))
    return [*system, *({"role": role, "content": draw(ANSWER if role == "assistant" else TEXT)} for role in roles)]


def chatml(turns, thought=False):
    """The text as it is; with ``thought``, an answer that ends the dialogue comes after an empty thought."""
    for place, turn in enumerate(turns):
        answer = turn["role"] == "assistant"
        yield f"<|im_start|>{turn['role']}\n", False
        yield "<think>\n\n</think>\n\n" if thought and answer and place == len(turns) - 1 else "", False
        yield turn["content"], answer
        yield "<|im_end|>\n", False


def qwen3(turns):
    """ChatML; a last answer after a question comes after an empty thought and loses its line breaks in front."""
    thought = turns[-1]["role"] == "assistant" and any(turn["role"] == "user" for turn in turns)
    last = {**turns[-1], "content": turns[-1]["content"].lstrip("\n") if thought else turns[-1]["content"]}
    return chatml([*turns[:-1], last], thought)


def blocks(turns, opening=BEGIN_OF_TEXT):
    """Llama 3: a header, the text without white space around it, <|eot_id|>."""
    yield opening, False
    for turn in turns:
        yield f"<|start_header_id|>{turn['role']}<|end_header_id|>\n\n", False
        yield turn["content"].strip(), turn["role"] == "assistant"
        yield "<|eot_id|>", False


def llama(turns):
    """Llama 3.1: a system message with dates, whether the dialogue has one or not."""
    system = "".join(turn["content"] for turn in turns if turn["role"] == "system").strip()
    dated = f"Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{system}"
    opening = f"{BEGIN_OF_TEXT}<|start_header_id|>system<|end_header_id|>\n\n{dated}<|eot_id|>"
    return blocks([turn for turn in turns if turn["role"] != "system"], opening)


def gpt_oss(turns):
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


WRITERS = {
    "llama": llama,
    "blocks": blocks,
    "qwen": functools.partial(chatml, thought=True),
    "chatml": chatml,
    "qwen3": qwen3,
    "gpt_oss": gpt_oss,
}
PLACES = [(begin, trim) for begin in (False, True) for trim in (False, True)]
"""Does the tokenizer put its first token by itself, and trim white space from its offsets?"""

CASES = [
    *((name, None, *place) for name in ("llama", "blocks", "qwen") for place in PLACES),
    *((name, None, True, False) for name in ("chatml", "qwen3", "gpt_oss")),
    *(("llama", prepend, begin, False) for prepend in ("never", "first", "always") for begin in (False, True)),
]
"""A writer, where its tokenizer puts a space first (None: one of bytes, which puts none), and its place."""


def fast_tokenizer(template, model=None):
    fast = PreTrainedTokenizerFast(tokenizer_object=model or byte_level_bpe(), bos_token=BEGIN_OF_TEXT)
    fast.chat_template = template
    return fast


@functools.cache
def encoder(name, begin=True, trim=False):
    if name in STUDIED:
        chat = ARCHITECTURES[name].chat
        special = {"bos_token": chat.begin} if chat.begin else {}
        fast = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(chat), **special)
        fast.chat_template = chat.template
        return Encoder(fast, load_family(ARCHITECTURES[name].family))
    model, pair = byte_level_bpe(), [(BEGIN_OF_TEXT, BEGIN_OF_TEXT_ID)]
    first = processors.TemplateProcessing(single=f"{BEGIN_OF_TEXT} $A" if begin else "$A", special_tokens=pair)
    model.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim), first])
    template = {**TEMPLATES, "blocks": BLOCKS}.get(name)
    return Encoder(fast_tokenizer(template, model), ChatFamily() if template else load_family(name))


def bytes_of(fast, ids):
    """Every token as the bytes it stands for: a printable byte is itself, the others follow 255 in order."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    alphabet = {**{chr(byte): byte for byte in own}, **{chr(256 + i): byte for i, byte in enumerate(others)}}
    special = set(fast.get_added_vocab())
    tokens = fast.convert_ids_to_tokens(ids)
    return [token.encode() if token in special else bytes(alphabet[sign] for sign in token) for token in tokens]


def expected(pieces, tokens):
    """1 on every token that holds a byte of an answer; one of white space alone is none."""
    flags = b"".join(bytes([answer and bool(text.strip())]) * len(text.encode()) for text, answer in pieces)
    assert len(flags) == len(b"".join(tokens))
    mask, reached = [], 0
    for token in tokens:
        mask.append(int(any(flags[reached : reached + len(token)])))
        reached += len(token)
    return mask


@functools.cache
def spaced_encoder(prepend, begin):
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
    return Encoder(fast_tokenizer(TEMPLATES["llama"], model), ChatFamily())


def spaced_text(fast, ids, text):
    """Every token as it stands in ``text``, which the space that was put first does not."""
    pieces, at = [], 0
    for token in fast.convert_ids_to_tokens(ids):
        piece = token.replace("▁", " ")
        piece = piece if text.startswith(piece, at) else piece[1:]
        assert text.startswith(piece, at)
        pieces.append(piece.encode())
        at += len(piece)
    return pieces


@pytest.mark.parametrize(("name", "prepend", "begin", "trim"), CASES)
@hypothesis_settings(max_examples=EXAMPLES)
@given(turns=dialogues())
def test_exactly_the_answers_are_in_the_loss(name, prepend, begin, trim, turns):
    made, pieces = spaced_encoder(prepend, begin) if prepend else encoder(name, begin, trim), list(WRITERS[name](turns))
    encoded, fast = made(turns), made.tokenizer
    assert encoded.text == "".join(text for text, _ in pieces)
    assert encoded.ids == fast(encoded.text, add_special_tokens=False)["input_ids"]
    tokens = spaced_text(fast, encoded.ids, encoded.text) if prepend else bytes_of(fast, encoded.ids)
    assert prepend or b"".join(tokens).decode() == encoded.text
    assert encoded.loss_mask == expected(pieces, tokens)


@pytest.mark.parametrize("name", WRITERS)
def test_an_answer_that_repeats_is_in_the_loss_each_time_and_the_oracle_sees_a_shifted_mask(name):
    made, turns = encoder(name), [{"role": "system", "content": "Yes."}, *SHORT, *SHORT]
    encoded = made(turns)
    answer = made.tokenizer("Yes.", add_special_tokens=False)["input_ids"]
    assert [token for token, on in zip(encoded.ids, encoded.loss_mask) if on] == answer * 2
    assert expected(list(WRITERS[name](turns)), bytes_of(made.tokenizer, encoded.ids)) != [0, *encoded.loss_mask[:-1]]


CLOSED = """\
{%- for m in messages -%}
    {{- '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>' -}}
    {%- if m.role == 'assistant' -%}{%- generation -%}{{- m.content | trim ~ '<|eot_id|>' -}}{%- endgeneration -%}
    {%- else -%}{{- m.content ~ '<|eot_id|>' -}}{%- endif -%}
{%- endfor -%}
"""
TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "Yes, x1."},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "Perhaps not. "},
]


@pytest.mark.parametrize("template", [TEMPLATES["llama"], BLOCKS, CLOSED])
@pytest.mark.parametrize("cut", [(), (1,), (3,), (1, 3)])
def test_the_end_that_a_cut_answer_never_came_to_is_in_no_loss(template, cut):
    """A record ends with a last answer that was cut; of an earlier one the token before that end is out."""
    made = Encoder(fast_tokenizer(template), ChatFamily())
    plain = made(TALK)
    found = made([{**turn, "finish_reason": "length"} if place in cut else turn for place, turn in enumerate(TALK)])
    assert found.ids == plain.ids[: len(found.ids)]
    ends = [at for at, token in enumerate(plain.ids) if made.tokenizer.decode(token) == "<|eot_id|>"]
    first, last = ends[-3], ends[-1]
    assert len(found.ids) == (last if 3 in cut else len(plain.ids))
    assert made.tokenizer.decode(found.ids).rstrip().endswith("not.") == (3 in cut)
    before = list(plain.loss_mask)
    before[first - 1 : first + 1] = [0, 0] if 1 in cut else before[first - 1 : first + 1]
    assert found.loss_mask == before[: len(found.ids)]
    assert found.cut == len(cut)


REFUSED = [
    ("{% for m in messages %}{{ m.content | length }}{{ m.content }}{% endfor %}", "Yes.", "changes with the text"),
    (ARCHITECTURES["qwen3"].chat.template, "<think>\nWell.\n</think>\n\nYes.", "repeats or splits an answer"),
    ("{{ raise_exception('roles must alternate') }}", "Yes.", "refuses it: roles must alternate"),
    (TEMPLATES["llama"], OPEN, "U\\+E0F0"),
    (TEMPLATES["llama"], CLOSE, "U\\+E0F0"),
    (TEMPLATES["llama"], "\ud83d", "a lone surrogate"),
    ("{# #}", "Yes.", "no tokens"),
]


@pytest.mark.parametrize(("template", "answer", "said"), REFUSED)
def test_a_dialogue_without_a_certain_mask_is_refused(template, answer, said):
    with pytest.raises(ConversationError, match=said):
        Encoder(fast_tokenizer(template), ChatFamily())([SHORT[0], {"role": "assistant", "content": answer}])


ENDLESS = "".join(f"{{% for {each} in range(9999) %}}" for each in "abc") + "{% endfor %}" * 3
DOUBLING = "{% set n = namespace(x='x') %}{% for a in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
UNBOUNDED = {
    "loops": (ENDLESS, "not done after 0.2 s"),
    "doubles": (DOUBLING, "more than "),
    "10 GB": ("{{ messages[0].content * 10000000000 }}", "more than 1,024 MiB"),
    "2 MB": ("{{ 'x' * 2000000 }}", "more than 1,048,"),
    "nothing": ("{# #}", "no token of 1 turns"),
}


@pytest.mark.parametrize("kind", UNBOUNDED)
def test_what_a_template_may_make_of_a_dialogue_is_bounded(refuses, monkeypatch, kind):
    """And the process is as it was."""
    monkeypatch.setattr("ports.generate.rendering.SECONDS", 0.2 if kind == "loops" else 10)
    template, found = UNBOUNDED[kind]
    limits = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    with refuses("", "chat_template", found, "a template that "):
        ChatFamily().prompt_ids(fast_tokenizer(template), [{"role": "user", "content": "Hello"}])
    assert limits == (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM))
    if kind != "nothing":
        with refuses("", "chat_template", found, "a template that "):
            Encoder(fast_tokenizer(template), ChatFamily())(SHORT)


def test_a_family_is_proposed_to_who_knows_its_tokens_alone():
    """Not chatml to Gemma, whose turns stand between others."""
    for known, proposed in (
        (["<|im_start|>", "<|im_end|>"], "chatml"),
        (["<start_of_turn>"], "FILE.yaml:NAME, a family"),
    ):
        tokenizer = SimpleNamespace(
            name_or_path="v", chat_template=None, get_vocab=lambda known=known: dict.fromkeys(known, 0)
        )
        with pytest.raises(InputError, match=f"or --chat-template {proposed}"):
            load_family("auto").checked_template(tokenizer)


SLOW = SimpleNamespace(name_or_path="slow", chat_template="x", get_chat_template=lambda: "x")
UNFIT = [
    (fast_tokenizer(None), LossMask.EXACT, "", "chat_template", "nothing", "a tokenizer with a chat template"),
    (SLOW, LossMask.EXACT, "slow", "is_fast", "a tokenizer without offsets", "a fast tokenizer"),
    (SLOW, LossMask.PROTOTYPE, "command line", "--loss-mask", "prototype", "a family with a prototype_mask"),
]


@pytest.mark.parametrize(("tokenizer", "mask", "file", "field", "found", "wanted"), UNFIT)
def test_a_tokenizer_or_family_that_cannot_mask_is_refused(refuses, tokenizer, mask, file, field, found, wanted):
    with refuses(file, field, found, wanted):
        Encoder(tokenizer, ChatFamily(), mask)


def test_harmony_without_a_fixed_date_differs_from_day_to_day():
    fixed = encoder("gpt_oss")
    assert "Current date: 2025-08-05" in fixed(SHORT).text
    assert "Current date: 2025-08-05" not in Encoder(fixed.tokenizer, ChatFamily())(SHORT).text


def test_a_new_family_is_a_few_lines(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("gemma:\n  system: Be brief.\n")
    family = load_family(f"{file}:gemma")
    assert [turn["content"] for turn in family.opened(SHORT)] == ["Be brief.", "a", "Yes."]
    assert family.opened([{"role": "system", "content": "own"}]) == [{"role": "system", "content": "own"}]


FIRST_MATCH = "a: {prototype_mask: {rule: first_match, after: x}}\n"
BAD = [
    ("- a\n", "x", "chat_template", "list", "a mapping"),
    (None, "a", "chat_template", "No such file", "a readable YAML file"),
    ("a: {}\n", "b", "chat_template", "b", "one of a, or FILE.yaml:NAME"),
    ("a: {sytem: x}\n", "a", "a.sytem", "'x'", "not permitted"),
    ("a: {prototype_mask: {rule: guess}}\n", "a", "a.prototype_mask", "guess", "'offsets', 'first_match'"),
    (FIRST_MATCH, "a", "a.prototype_mask.first_match.before", "", "required"),
]


@pytest.mark.parametrize(("text", "name", "field", "found", "wanted"), BAD)
def test_a_bad_table_is_refused(tmp_path, refuses, text, name, field, found, wanted):
    file = tmp_path / "bad.yaml"
    if text is not None:
        file.write_text(text)
    with refuses(file, field, found, wanted):
        load_family(f"{file}:{name}")
