"""``speculator answers``: the verifier answers prompts itself, so that its draft learns what it will have to foresee.

The result has one line a dialogue, in the order of the prompts: ``{"messages": [...], "finish_reason": "stop",
"finish_reasons": ["stop", ...]}``, one an answer, ``"length"`` where it was cut; ``speculator records`` reads it as it
lies. Prompts go to the engine a window at a time, and a window's lines are written together: what is left to do after a
kill is whole windows, so that the same command meets the same neighbours and ends with the same answers.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr

from ports import flags
from ports.commands import hushed
from ports.errors import InputError, reason
from ports.files import check_output, check_output_file, check_outside, check_regular, read_json
from ports.generate.address import KEY_HELP, Address
from ports.generate.chat import Encoder
from ports.generate.conversations import ConversationError, load_conversations
from ports.generate.copies import CopyCount, TensorParallel, copies_of, devices_for, through_copies
from ports.generate.cuts import told_of_cuts
from ports.generate.engines import Engine, TransformersEngine, VllmEngine, longest_dialogue
from ports.generate.families import ChatFamily, load_family
from ports.generate.records import digest, start_or_go_on
from ports.generate.replies import ENDS, Drawn, Prompt, Reply
from ports.generate.server import ServerEngine
from ports.generate.talks import Dialogue, Talk, keeping, kept_beside
from ports.progress import Work
from ports.training.checkpoint import DirectoryLock
from ports.training.settings import CommandSettings
from ports.verifier.fingerprint import verifier_fingerprint
from ports.verifier.tokenizer import open_tokenizer, tokenizer_fingerprint

WINDOW = 128
"""Dialogues that an engine gets at a time: more keep it busier, and more of them are answered again after a kill."""

PRIME = 1_000_003
"""Seeds of neighbouring dialogues are that far apart."""

ASKED = 3
"""Times that an answer is asked for at most, where what came ended otherwise than answers do."""


class AnswersSettings(CommandSettings):
    """The verifier answers the turns of the users; answers that the data hold are left out."""

    model: str = Field(alias="verifier", description="verifier: Hugging Face directory or hub id")
    data: str = Field(description="prompts: .jsonl, .json, .parquet or .txt file, a directory of them, or a hub id")
    out: Path = Field(description="the .jsonl file to write, or to go on with")
    restart: bool = Field(False, description="begin anew: what is in --out was made in another way, and goes")
    samples: int | None = Field(None, ge=1, description="dialogues to answer, the first ones; default: all")
    max_new_tokens: int = Field(160, ge=1, description="tokens of an answer at most")
    temperature: float = Field(0.0, ge=0, le=100, allow_inf_nan=False, description="0: the likeliest token, always")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens of this probability together")
    seed: int = Field(0, ge=0, lt=2**31, description="of the draws, where temperature is above 0")
    engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="auto: vLLM where it is installed, else transformers"
    )
    server: str | None = Field(None, description="ask this OpenAI-compatible server instead, as http://localhost:8000")
    served_model: str | None = Field(None, description="the server's name for the verifier; default: --verifier")
    api_key: SecretStr | None = Field(None, description=KEY_HELP)
    max_concurrency: int = Field(32, ge=1, description="prompts at a time, with transformers")
    copies: CopyCount = None
    tensor_parallel: TensorParallel = None
    chat_template: str = Field("auto", description="as in speculator records")
    progress: bool = Field(True, description="show a progress bar")


def answer(settings: AnswersSettings) -> None:
    """Answer what is not answered yet.

    Raises:
        InputError: prompts, verifier or engine that cannot be used; a file that was made in another way, or is in use.
    """
    check_output(settings.out.parent, "out")
    if settings.out.parent.is_dir():
        check_output_file(settings.out, "out")
    check_outside(settings.out, "out", settings.data, "data")
    copies, devices = 1, settings.tensor_parallel or 1
    if settings.server is None:
        devices = settings.tensor_parallel or devices_for(settings.model)
        copies = copies_of(settings.copies, devices)
    spread = {**settings.model_dump(), "tensor_parallel": devices}
    settings = AnswersSettings.model_construct(**spread)  # a class that pickle finds again
    asking = Asking(settings, open_tokenizer(settings.model), load_family(settings.chat_template))
    dialogues = read_dialogues(settings.data, settings.samples)
    asking.check(dialogues)
    engine = _engine(settings, asking.tokenizer)
    made = _how_made(asking, engine.name, dialogues)
    lock = DirectoryLock(settings.out.parent, "out", f".{settings.out.name}.lock")
    try:
        if settings.restart:
            drop(settings.out)
        done = go_on(settings.out, made)
        if done < len(dialogues):
            _write(asking, engine, dialogues, done, copies, digest([made]))
    finally:
        lock.release()
    print(f"{len(dialogues):,} answered dialogues in {settings.out}", file=sys.stderr)
    for line in told_of_cuts(settings.out, settings.max_new_tokens, longest_dialogue(settings.model)):
        print(line, file=sys.stderr)


def _engine(settings: AnswersSettings, tokenizer: Any) -> Engine:
    """What answers; ``auto`` is what began the answers in ``out``, whatever was installed since.

    Raises:
        InputError: vLLM is asked for and not installed.
    """
    here, model, devices = find_spec("vllm") is not None, settings.model, settings.tensor_parallel or 1
    if settings.server is not None:
        return ServerEngine(model, tokenizer, Address(settings.server, settings.api_key), settings.served_model)
    named = settings.engine if settings.engine != "auto" or settings.restart else _began(settings.out)
    if named == "transformers" and settings.engine == "auto" and here:
        print(f"transformers began {settings.out} and goes on; vLLM answers in another --out", file=sys.stderr)
    if named == "transformers" or (named == "auto" and not here):
        return TransformersEngine(model, tokenizer, settings.max_concurrency, devices)
    if not here:
        raise InputError("command line", "--engine", "vllm, which is not installed", "it, or --engine transformers")
    return VllmEngine(model, tokenizer, devices)


def _began(file: Path) -> str:
    """The engine of this process that began the answers in ``file``, else ``auto``."""
    manifest = _manifest(file)
    content = read_json(manifest, "manifest", "what this command wrote") if manifest.is_file() else {}
    began = str(content.get("engine", "")).partition(" ")[0] if isinstance(content, dict) else ""
    return began if began in ("vllm", "transformers") else "auto"


def read_dialogues(data: str, samples: int | None = None) -> list[Dialogue]:
    """The first ``samples`` dialogues of whatever :func:`ports.generate.conversations.load_conversations` reads.

    Raises:
        InputError: one that cannot be read, or that no user speaks in.
    """
    conversations, found = load_conversations("any", data), []
    for row in range(min(len(conversations), samples or sys.maxsize)):
        try:
            turns = conversations.messages(row)
        except ConversationError as error:
            raise InputError(data, f"row {row}", error, "a dialogue or a prompt") from error
        if not rounds_of(turns):
            raise InputError(data, f"row {row}", ascii(turns)[:80], "a turn of a user")
        found.append(turns)
    return found


def rounds_of(dialogue: Dialogue) -> list[Dialogue]:
    """What is said before each answer: every turn of a user gets one, and those that are there are left out."""
    said = [turn for turn in dialogue if turn["role"] != "assistant"]
    ends = [place for place, turn in enumerate(said, 1) if turn["role"] == "user"]
    return [said[start:stop] for start, stop in pairwise([0, *ends])]


@dataclass
class Asking:
    """How dialogues become prompts of at most ``room`` tokens, and answers parts of dialogues.

    Raises:
        InputError: answers longer than what the verifier was made for; or a tokenizer that cannot tell them apart.
    """

    settings: AnswersSettings
    tokenizer: Any
    family: ChatFamily

    def __post_init__(self) -> None:
        longest, length = longest_dialogue(self.settings.model), self.settings.max_new_tokens
        if longest <= length:
            raise InputError("command line", "--max-new-tokens", length, f"below {longest}")
        self.room = longest - length
        self.encoder = Encoder(self.tokenizer, self.family)  # as records will have it

    def ids(self, row: int, said: Dialogue) -> list[int]:
        """Up to where the verifier speaks.

        Raises:
            InputError: no chat template, or one that refuses the dialogue.
        """
        try:
            return self.family.prompt_ids(self.tokenizer, said)
        except InputError:
            raise
        except Exception as error:  # templates raise errors of their own
            expected = "a dialogue that the chat template takes"
            raise InputError(self.settings.data, f"row {row}", reason(error), expected) from error

    def check(self, dialogues: Sequence[Dialogue], first: int = 0) -> None:
        """Put every round of ``dialogues``, row ``first`` and on, into the chat template; raises as :meth:`ids`."""
        for row, dialogue in enumerate(dialogues, first):
            said: Dialogue = []
            for turns in rounds_of(dialogue):
                said += turns
                self.ids(row, said)
                said.append({"role": "assistant", "content": "Yes."})

    def refuse_useless(self, talks: Sequence[Talk]) -> None:
        """Refuse answers that are of no use to a draft.

        Raises:
            InputError: none of those that came to an end, or of all where none did, can be a record.
        """
        judged = [talk for talk in talks if not talk.cut] or talks
        found = [self._unfit(talk) for talk in judged]
        if all(found):
            fits = f"none of {len(found)} that a record can hold, the first: {found[0]}"
            expected = "a chat template that asks for answers without thoughts, as --chat-template qwen makes Qwen 3's"
            raise InputError(self.settings.model, "answers", fits, expected)

    def _unfit(self, talk: Talk) -> str:
        if talk.special:
            return f"special tokens in {ascii(talk.special)[:80]}"
        try:
            self.encoder(talk.said)
        except ConversationError as error:
            return str(error)
        return ""

    def finish(self, engine: Engine, talks: Sequence[Talk], work: Work) -> None:
        """Answer every round of ``talks``, side by side.

        A dialogue without room for its next answer ends there, as one that was cut.

        Raises:
            InputError: see :meth:`_ended`.
        """
        chosen = self.settings
        drawn: Drawn = {"max_tokens": chosen.max_new_tokens, "temperature": chosen.temperature, "top_p": chosen.top_p}
        while asked := [talk for talk in talks if talk.rounds]:
            prompts = {}
            for talk in asked:
                talk.said += talk.rounds.pop(0)
                ids = self.ids(talk.row, talk.said)
                if len(ids) > self.room:
                    work.add(1 + len(talk.rounds))
                    talk.full, talk.rounds = True, []
                else:
                    prompts[talk.row] = Prompt(ids, (chosen.seed + PRIME * talk.row + len(talk.said)) % 2**31)
            asked = [talk for talk in asked if talk.row in prompts]
            for number, reply in self._ended(engine, list(prompts.values()), drawn, work):
                asked[number].said.append({"role": "assistant", "content": reply.text})
                asked[number].reasons.append(reply.end)
                asked[number].special = asked[number].special or (reply.whole if reply.whole != reply.text else "")

    def _ended(
        self, engine: Engine, prompts: Sequence[Prompt], drawn: Drawn, work: Work
    ) -> Iterator[tuple[int, Reply]]:
        """Answers by the numbers of their prompts; what ended otherwise than answers do is asked for again.

        Raises:
            InputError: it ends so every time; all others come before.
        """
        left, ends, answered = list(range(len(prompts))), Counter[str](), work.done + len(prompts)
        for _ in range(ASKED):
            asked, left, ends = left, [], Counter()

            def tell(ended: int, reached: float, before: int = answered - len(asked)) -> None:
                work.at(before + ended, before + reached)

            given = engine.answer([prompts[number] for number in asked], drawn, tell) if asked else ()
            for place, reply in given:
                if reply.end in ENDS:
                    yield asked[place], reply
                else:
                    left.append(asked[place])
                    ends[reply.end] += 1
        if left:
            named = ", ".join(f"{count:,} by {ascii(end)[:40]}" for end, count in ends.most_common())
            found = f"{len(left):,} of {len(prompts):,} that ended otherwise, each of {ASKED} times: {named}"
            raise InputError(self.settings.server or self.settings.model, "answers", found, "ends by stop or length")


def _write(asking: Asking, engine: Engine, dialogues: Sequence[Dialogue], done: int, copies: int, made: str) -> None:
    """Everything from dialogue ``done`` on; ``made`` digests how."""
    settings, rounds = asking.settings, [len(rounds_of(dialogue)) for dialogue in dialogues]
    talks = [Talk(row, rounds_of(dialogues[row])) for row in range(done, len(dialogues))]
    windows = [talks[first : first + WINDOW] for first in range(0, len(talks), WINDOW)]
    work = Work("answers", sum(rounds), sum(rounds[:done]), settings.progress)
    answered = through_copies(partial(_finisher, asking, engine, work, made), windows, copies, settings.tensor_parallel)
    with work, settings.out.open("a", encoding="utf-8") as stream, closing(answered):
        for window in answered:
            if window[0].row == 0:
                asking.refuse_useless(window)
            stream.write("".join(talk.line() for talk in window))
            stream.flush()
            os.fsync(stream.fileno())
            work.at(sum(rounds[: window[-1].row + 1]))


def _finisher(asking: Asking, engine: Engine, work: Work, made: str, _: int) -> Callable[[list[Talk]], list[Talk]]:
    """What answers a window; another process' ``work`` is shown by nobody."""

    def finish(window: list[Talk]) -> list[Talk]:
        asked = {talk.row: len(talk.rounds) for talk in window}
        with keeping(asking.settings.out, made, window) if engine.independent else nullcontext():
            work.add(sum(asked[talk.row] for talk in window if talk.is_whole))
            asking.finish(engine, [talk for talk in window if talk.rounds], work)
        return window

    return finish


def _answered(file: Path) -> bool:
    """Is there anything in a file of answers? One that is no file counts as something."""
    return file.exists() and (not file.is_file() or file.stat().st_size > 0)


def _manifest(file: Path) -> Path:
    return file.with_name(f"{file.name}.manifest")


def _how_made(asking: Asking, engine: str, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    """What the manifest beside the answers says; ``prompts`` digests the dialogues."""
    settings, how = asking.settings, ("max_new_tokens", "temperature", "top_p", "seed", "served_model")
    return {
        "verifier": verifier_fingerprint(settings.model),
        "tokenizer": tokenizer_fingerprint(asking.tokenizer),
        "chat": asking.family.model_dump(mode="json", exclude_defaults=True),
        "engine": engine,
        "prompts": digest([list(map(rounds_of, dialogues))]),
        "dialogues": len(dialogues),
        **{name: getattr(settings, name) for name in how},
    }


def drop(file: Path) -> None:
    """Away with what this command left in ``file`` and beside it; one of another origin stays, and is refused."""
    kept_beside(file).unlink(missing_ok=True)
    if _manifest(file).is_file():
        file.unlink(missing_ok=True)


def go_on(file: Path, made: Mapping[str, Any]) -> int:
    """How many dialogues are answered in ``file``: whole windows of them, or all; what is beyond is cut off.

    Raises:
        InputError: it, or what was kept beside it, was made in another way, or is no file of answers.
    """
    there = next((each.name for each in (file, kept_beside(file)) if _answered(each)), "")
    unsaid = {"served_model": made["served_model"]}
    start_or_go_on(_manifest(file), made, "out", there, unsaid, "--restart")
    if not file.exists():
        return 0
    check_regular(file, "out")
    lines = file.read_bytes().splitlines(keepends=True)
    whole = len(lines) - (bool(lines) and not lines[-1].endswith(b"\n"))
    done = whole if whole >= made["dialogues"] else whole - whole % WINDOW
    os.truncate(file, sum(map(len, lines[:done])))
    return done


command = flags.command(AnswersSettings, hushed(answer))
