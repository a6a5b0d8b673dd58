"""``speculator draft``: from a chat model and prompts to a draft that can be served, phase by phase.

``OUT/`` holds ``data/`` (what is trained on, and what is held out), ``answers/``, ``records/`` with the vocabulary,
``draft.json``, ``checkpoints/``, ``draft/``, which is what a server opens, and ``evaluation.json``. ``run.json`` says
what all of it is made from, and which phases are done: the same command goes on with the first that is not. Phases that
compute are commands of their own, each in a process that gives its memory back.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from itertools import takewhile
from multiprocessing import resource_tracker
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ports import cli, flags
from ports.commands import exit_code, hush_libraries, hushed
from ports.eagle3.config import load_draft_config as load_eagle3
from ports.errors import InputError
from ports.estimate import Clock, build_objective, step_seconds, verifier_seconds
from ports.evaluate.measure import TOGETHER
from ports.evaluate.verifier import longest_prompt
from ports.files import check_output, check_outside, gigabytes, read_json
from ports.generate.answers import AnswersSettings, Asking, read_dialogues, rounds_of
from ports.generate.chat import load_family
from ports.generate.conversations import Message
from ports.generate.engines import choose_engine
from ports.generate.records import digest, geometry_of, start_or_go_on, write_manifest
from ports.generate.run import bytes_in, say
from ports.generate.vocabulary import SIZES, VocabularySettings, write_vocabulary
from ports.hass.config import load_draft_config as load_hass
from ports.numerics import best_device, has_bf16_units
from ports.serving.interfaces import serving_of
from ports.spellings import PREFIX, public_name
from ports.training.alignment import Alignment
from ports.training.checkpoint import BEST, FOLDER, DirectoryLock, sweep, write_directory
from ports.training.derived import derived_config
from ports.training.draft_config import read_config_dict
from ports.training.records import SCHEMA, list_records
from ports.training.settings import Precision
from ports.training.stop import SIGNALS, end_with_parent
from ports.verifier.config import verifier_config
from ports.verifier.fingerprint import verifier_fingerprint
from ports.verifier.loading import check_verifier
from ports.verifier.tokenizer import open_tokenizer
from ports.verifier.trust import TRUSTED

STEPS = 2000
"""Optimizer steps that a small data set is trained for, as far as :data:`PASSES` lets it."""

PASSES = (2, 8)
"""At least and at most."""

WIDE, RATES = 4096, (1e-4, 4e-4)
"""Peak learning rate of a draft so wide or wider, about what EAGLE-3's are trained at, and the highest, which at
h = 576 is worth more than that or 1e-3 (docs/results.md). In between it goes with h^-0.7, through the two."""

RUN = "run.json"
EVALUATED = 128
"""Tokens of an answer to a held-out prompt at most."""

VALIDATED = 0.05
"""Share of the records that the best checkpoint is chosen by, where there are enough of them."""

START = 15
"""Seconds until a phase has loaded its libraries and models, about."""

SUPERVISED = 0.6
"""Share of the tokens in the loss, where answers are given, about."""

TURN = 8
"""Tokens that a chat template puts around a turn, about."""

BATCH_TOKENS = 4096
"""Tokens of a forward of the verifier, whose hidden states are all held."""


class DraftSettings(AnswersSettings):
    """Train a draft for a chat model on its own answers, measure it, and leave a directory to serve."""

    out: Path = Field(description="directory of the run: records, checkpoints, draft/, evaluation.json")
    algorithm: Literal["eagle3", "hass"] = Field("eagle3", description="which draft")
    answers: Literal["own", "given"] = Field("own", description="own: the verifier answers; given: those in the data")
    held_out: int = Field(16, ge=1, description="dialogues at the end that only measure, a fifth of them at most")
    configpath: str | None = Field(None, description="draft config; default: one layer in the verifier's sizes")
    draft_vocab_size: int | None = Field(
        None, ge=1, description="tokens that an Eagle3 draft can say; default: as speculator vocabulary chooses"
    )
    passes: int | None = Field(None, ge=1, description="over the records; default: 2 to 8, about 2,000 steps")
    lr: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="peak learning rate; default: 1e-4 to 4e-4, by the verifier's width",
    )
    bs: int = Field(1, ge=1, description="samples of an optimizer step")
    mixed_precision: Literal["auto", Precision] = Field(
        "auto", description="of training; auto: bf16 where the device is faster in it, else no"
    )
    forward_num_total: int = Field(3, ge=1, description="TTT steps, and tokens that a server proposes")


class Run:
    """What a command makes in its ``out``."""

    def __init__(self, settings: DraftSettings) -> None:
        self.settings = DraftSettings.model_construct(**settings.model_dump())  # a class that pickle finds again
        self.out = settings.out
        self.dialogues = read_dialogues(settings.data, settings.samples)
        self.held_out = min(settings.held_out, len(self.dialogues) // 5)
        if self.held_out == 0:
            raise InputError(settings.data, "rows", len(self.dialogues), "at least 5: some of them are held out")
        self.verifier = verifier_config(settings.model)
        longest_prompt(settings.model, self.evaluated, settings.forward_num_total)
        trained = self.seen - validated(self.seen)
        if settings.bs > trained:
            raise InputError(
                "command line", "--batch-size", settings.bs, f"at most {trained}, the dialogues to train on"
            )

    @property
    def evaluated(self) -> int:
        """Tokens of an answer to a held-out prompt at most."""
        return min(EVALUATED, self.settings.max_new_tokens)

    @property
    def seen(self) -> int:
        """Dialogues that the draft is trained on."""
        return len(self.dialogues) - self.held_out

    @property
    def passes(self) -> int:
        """Over the records."""
        least, most = PASSES
        return self.settings.passes or max(least, min(most, math.ceil(STEPS * self.settings.bs / self.seen)))

    @property
    def lr(self) -> float:
        """Peak learning rate: the one asked for, or one that goes with the verifier's width."""
        least, most = RATES
        return self.settings.lr or max(least, min(most, least * (WIDE / self.verifier.hidden_size) ** 0.7))

    @property
    def precision(self) -> Precision:
        """Of training: the one asked for, or the fastest that this machine has units for."""
        asked = self.settings.mixed_precision
        return ("bf16" if has_bf16_units(best_device()) else "no") if asked == "auto" else asked

    @cached_property
    def config(self) -> dict[str, Any]:
        """The draft's config, without ``draft_vocab_size`` where the records will tell it.

        Raises:
            InputError: unreadable, or a size that is said twice or of a HASS draft.
        """
        named, given = self.settings.configpath, self.settings.draft_vocab_size
        config = derived_config(self.verifier) if named is None else read_config_dict(named)
        if given is not None and (self.settings.algorithm == "hass" or "draft_vocab_size" in config):
            raise InputError("command line", "--draft-vocab-size", given, "Eagle3, and a config that does not say it")
        return config if given is None else {**config, "draft_vocab_size": given}

    def likely_config(self) -> Any:
        """As Speculators has it; the vocabulary may turn out larger.

        Raises:
            InputError: a config that no draft of this verifier can have.
        """
        eagle3 = self.settings.algorithm == "eagle3"
        guessed = {"draft_vocab_size": min(SIZES[0], self.verifier.vocab_size)} if eagle3 else {}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "draft.json"
            file.write_text(json.dumps({**guessed, **self.config}))
            load = load_eagle3 if eagle3 else load_hass
            return load(str(file), self.settings.model, self.settings.forward_num_total, Alignment.CHAIN)

    def inputs(self) -> dict[str, Any]:
        """What everything depends on, by name."""
        elsewhere = {"model", "data", "out", "samples", "configpath", "server", "max_concurrency", "progress"}
        elsewhere |= {"served_model", "trust_remote_code"}  # what the code is stands in the verifier's fingerprint
        return {
            "format_version": SCHEMA,
            "verifier": verifier_fingerprint(self.settings.model),
            "data": digest([self.dialogues]),
            "draft": self.config,
            **self.settings.model_dump(mode="json", exclude=elsewhere),
            "passes": self.passes,
            "lr": self.lr,
            "mixed_precision": self.precision,
        }

    def work(self) -> tuple[int, int]:
        """Tokens that are said before the answers, about, and how many answers are to be given.

        Raises:
            InputError: no chat template, or one that refuses a dialogue.
        """
        settings, own, dialogues = self.settings, self.settings.answers == "own", self.dialogues[: self.seen]
        asking = Asking(settings, open_tokenizer(settings.model), load_family(settings.chat_template))
        asked = 0 if own else self.seen  # of given answers, those that the template refuses are left out
        asking.check(self.dialogues[asked:], asked)

        def count(turns: Sequence[Message]) -> int:
            ids = asking.tokenizer([turn["content"] for turn in turns], add_special_tokens=False)["input_ids"]
            return sum(min(len(each), asking.room) for each in ids)

        first = rounds_of(dialogues[0])[0]
        frame = len(asking.ids(0, first)) - count(first)  # also what is put before the first answer
        talks = [[turn for said in rounds_of(row) for turn in said] if own else row for row in dialogues]
        given = sum(frame + count(talk) + TURN * max(0, len(talk) - len(first) - 1) for talk in talks)
        return given, own * sum(len(rounds_of(row)) for row in dialogues)

    def seconds(self, given: int, answers: int, objective: Any, clock: Clock = time.perf_counter) -> dict[str, float]:
        """That the phases compute, by name: those of a batch, timed here, times the number of batches.

        Args:
            given: see :meth:`work`, and ``answers``.
            objective: :func:`ports.estimate.build_objective` of a draft like the one that will be trained.
            clock: tells the time, in seconds.
        """
        settings, answer = self.settings, self.settings.max_new_tokens
        tokens = given + answers * answer
        length = math.ceil(tokens / self.seen)
        engine = choose_engine(settings.model, None, settings.engine, settings.server, settings.max_concurrency)
        rows, together = min(self.seen, max(1, BATCH_TOKENS // length)), min(max(1, answers), engine.together)
        held = min(TOGETHER, self.held_out)
        shapes = [(rows, 0), (together, 1), (held, 1), (held, settings.forward_num_total + 1)]
        read, said, plain, checked = verifier_seconds(settings.model, length, shapes, clock)
        token = read / rows / length
        supervised = answers * answer / tokens or SUPERVISED
        step = step_seconds(objective, settings.bs, length, supervised, clock, half=self.precision == "bf16")
        found = {
            "answers": engine.pace * (token * given + said * answer * math.ceil(answers / together)) if answers else 0,
            "records": token * tokens,
            "training": step * math.ceil(self.seen / settings.bs) * self.passes,
            "evaluation": (plain + checked / 2) * self.evaluated * math.ceil(self.held_out / held),
        }
        return {name: seconds for name, seconds in found.items() if seconds}

    def _timed(self, given: int, answers: int) -> dict[str, float]:
        """:meth:`seconds`, in a process that takes the device's memory with it: the phases need all of it."""
        told: SimpleQueue[dict[str, float]] = multiprocessing.get_context("spawn").SimpleQueue()
        apart("draft", partial(_tell_seconds, told, self, given, answers))
        return told.get()

    def forecast(self) -> list[str]:
        """Time and disk that the phases take, about.

        Raises:
            InputError: see :meth:`likely_config`, :meth:`work` and :func:`ports.verifier.loading.check_verifier`; or
                too little room on the disk.
            PhaseError: the process that measures it ended otherwise.
        """
        settings, objective = self.settings, build_objective(self.likely_config(), self.settings.forward_num_total)
        given, answers = self.work()
        tokens = given + answers * settings.max_new_tokens
        draft = sum(each.numel() for each in objective.parameters() if each.requires_grad)
        embedding = self.verifier.hidden_size * self.verifier.vocab_size
        kept = 4 * embedding + 12 * draft  # a checkpoint: the verifier's embedding, the draft, and two moments of it
        shape = geometry_of(settings.algorithm, settings.model, dtype="auto")
        disk = shape.bytes_of(tokens) + kept * (self.passes + 1)
        check_output(self.out, "out", disk - bytes_in(self.out))
        check_verifier(settings.model)
        minutes = {name: (START + each) / 60 for name, each in self._timed(given, answers).items()}
        listed = ", ".join(f"{name} {math.ceil(each):,}" for name, each in minutes.items())
        return [
            f"{self.seen:,} dialogues to train on in {self.passes} passes, {self.held_out} held out; "
            f"{'at most' if answers else 'about'} {tokens:,} tokens",
            f"about {math.ceil(sum(minutes.values())):,} minutes ({listed}) and {gigabytes(disk)} of disk",
        ]

    def phases(self) -> dict[str, tuple[Path, Callable[[], None]]]:
        """By name: what is there when it is done, and how it is done."""
        settings, out = self.settings, self.out
        own = {"answers": (out / "answers", self._answer)} if settings.answers == "own" else {}
        return {
            "data": (out / "data", self._divide),
            **own,
            "records": (out / "records", self._record),
            "config": (out / "draft.json", self._configure),
            "training": (out / "checkpoints", self._train),
            "draft": (out / "draft", self._publish),
            "evaluation": (out / "evaluation.json", self._evaluate),
        }

    def _divide(self) -> None:
        first_round = [rounds_of(dialogue)[0] for dialogue in self.dialogues[self.seen :]]
        parts = {"train": self.dialogues[: self.seen], "held_out": first_round}

        def fill(folder: Path) -> None:
            folder.mkdir()
            for name, rows in parts.items():
                lines = [json.dumps({"messages": turns}) + "\n" for turns in rows]
                (folder / f"{name}.jsonl").write_text("".join(lines))

        write_directory(self.out / "data", fill)

    def _answer(self) -> None:
        shared = AnswersSettings.model_fields.keys() - {"data", "out", "samples", "progress", "trust_remote_code"}
        values = {name: getattr(self.settings, name) for name in shared}
        files = {"data": self.out / "data/train.jsonl", "out": self.out / "answers/answers.jsonl"}
        self._command("answers", **values, **files)

    def _record(self) -> None:
        settings = self.settings
        texts = "answers/answers.jsonl" if settings.answers == "own" else "data/train.jsonl"
        self._command(
            "records",
            model_path=settings.model,
            data_path=self.out / texts,
            dataset="any",
            samples=self.seen - 1,
            outdir=self.out / "records",
            algorithm=settings.algorithm,
            chat_template=settings.chat_template,
            dtype="auto",
            batch_tokens=BATCH_TOKENS,
            on_bad_conversation="skip",
        )

    def _configure(self) -> None:
        """The vocabulary is written before the config, which names its size."""
        config, records = self.config, self.out / "records"
        if self.settings.algorithm == "eagle3":
            named = config.get("draft_vocab_size")
            chosen = write_vocabulary(
                VocabularySettings(tmpdir=records, basepath=self.settings.model, draft_vocab_size=named)
            )
            say(f"{chosen.draft_vocab_size:,} tokens cover {chosen.covered / max(chosen.tokens, 1):.2%} of the records")
            config = {**config, "draft_vocab_size": chosen.draft_vocab_size}
        write_manifest(self.out / "draft.json", config)

    def _train(self) -> None:
        settings, records = self.settings, self.out / "records"
        maps = {name: records / f"{name}.npy" for name in ("t2d", "d2t")} if settings.algorithm == "eagle3" else {}
        self._command(
            f"train {settings.algorithm}",
            basepath=settings.model,
            configpath=self.out / "draft.json",
            tmpdir=records,
            cpdir=self.out / "checkpoints",
            ckpt_path="auto",
            epochs=self.passes,
            ttt_alignment=Alignment.CHAIN.value,
            num_workers=0,
            lr=self.lr,
            mixed_precision=self.precision,
            **{name: getattr(settings, name) for name in ("bs", "forward_num_total", "seed")},
            **maps,
            **({"val_fraction": VALIDATED} if validated(len(list_records(records))) else {}),
        )

    def _publish(self) -> None:
        """The best checkpoint without the state of its training."""
        chosen = best_checkpoint(self.out / "checkpoints", self.passes)

        def fill(folder: Path) -> None:
            shutil.copytree(chosen, folder, ignore=shutil.ignore_patterns(FOLDER))

        write_directory(self.out / "draft", fill)

    def _evaluate(self) -> None:
        words = [str(self.out / "draft"), "--prompts", str(self.out / "data/held_out.jsonl")]
        words += ["--max-new-tokens", str(self.evaluated)]
        in_process("evaluate", [*words, "--json", str(self.out / "evaluation.json")], (0, 1))

    def _command(self, name: str, **values: object) -> None:
        """Run one, on settings by their fields; a flag whose value is None is left out."""
        named = {public_name(field).replace("_", "-"): value for field, value in values.items() if value is not None}
        words = [f"--{flag}={value}" for flag, value in named.items()]
        in_process(name, [*words, "--progress" if self.settings.progress else "--no-progress"])


def validated(records: int) -> int:
    """How many of them the best checkpoint is chosen by, and are not trained on."""
    return round(VALIDATED * records) if VALIDATED * records >= 2 else 0


def _tell_seconds(told: SimpleQueue[dict[str, float]], run: Run, given: int, answers: int) -> None:
    objective = build_objective(run.likely_config(), run.settings.forward_num_total)
    told.put(run.seconds(given, answers, objective))


class PhaseError(Exception):
    """A phase ended with ``code``, and has said why."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def best_checkpoint(cpdir: Path, passes: int) -> Path:
    """The one that ``best.json`` names, else that of the last pass.

    Raises:
        InputError: there is none.
    """
    numbered = sorted(cpdir.glob(f"*[a-z_]{passes - 1}"))
    name = told(cpdir / BEST, checkpoint=str)["checkpoint"] if (cpdir / BEST).is_file() else None
    found = [cpdir / name] if name else [each for each in numbered if not each.name.startswith("step_")]
    if not found or not (found[0] / "config.json").is_file():
        raise InputError(cpdir, "checkpoint", name or "none of the last pass", "what training saved")
    return found[0]


def told(file: Path, **kinds: type) -> Any:
    """What a phase left in a JSON ``file``.

    Raises:
        InputError: unreadable, or a value that is absent or of another kind.
    """
    content = read_json(file, file.stem, "what this command wrote")
    for name, kind in kinds.items():
        found = content.get(name) if isinstance(content, dict) else content
        if not isinstance(found, kind):
            raise InputError(file, name, repr(found)[:80], f"a value of kind {kind.__name__}")
    return content


def in_process(name: str, words: Sequence[str], good: Sequence[int] = (0,)) -> None:
    """A command :func:`apart`."""
    apart(name, partial(cli.run, [*name.split(), *words]), good)


def apart(name: str, act: Callable[[], Any], good: Sequence[int] = (0,)) -> None:
    """``act`` in a process of its own, which gets the signals that ask this one to stop.

    Raises:
        PhaseError: it ended with another exit code than those that are ``good``.
    """
    process = multiprocessing.get_context("spawn").Process(target=_phase, args=(act,))
    resource_tracker.ensure_running()  # whose start would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    process.start()
    assert process.pid is not None  # it was started
    with _forwarding(process.pid):
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        process.join()
    code = process.exitcode or 0
    if code < 0:
        say(f"speculator {name}: ended by signal {-code}; the same command goes on")
    if code not in good:
        raise PhaseError(code if code > 0 else 128 - code)


def _phase(act: Callable[[], Any]) -> None:
    """In its own session: a terminal's Ctrl-C reaches it once, through the process that waits for it, and is a line."""
    os.setsid()
    end_with_parent()
    hush_libraries()
    for name in [name for name in os.environ if name.startswith(PREFIX) and name != TRUSTED]:
        del os.environ[name]  # it was for the whole, which hands on what a phase needs

    def run() -> Any:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return act()

    sys.exit(exit_code(run))


@contextmanager
def _forwarding(pid: int) -> Iterator[None]:
    def forward(number: int, frame: object) -> None:
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, number)

    before = {name: signal.signal(name, forward) for name in SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def make(settings: DraftSettings) -> int:
    """Everything that is not done yet; 1 if drafting changed a token beyond rounding, else 0, or how a phase ended.

    Raises:
        InputError: what is wrong with model, data or flags; or ``out`` holds a run that was made from something else.
    """
    check_output(settings.out, "out")
    check_outside(settings.out, "out", settings.data, "data")
    run = Run(settings)
    if (served := serving_of(settings.algorithm, settings.model)).serves is not True:
        say(f"warning: {served.why}")
    try:
        _go_through(run, [] if (settings.out / "evaluation.json").exists() else run.forecast())
    except PhaseError as error:
        return error.code
    return report(settings.out, served.serves is not False)


def _go_through(run: Run, lines: Sequence[str]) -> None:
    """Say ``lines``, and do what is not done yet."""
    out, inputs, phases = run.out, run.inputs(), run.phases()
    lock = DirectoryLock(out, "out")
    try:
        sweep(out)
        done = _done(out, inputs, phases)
        for line in lines:
            say(line)
        for number, (name, (result, act)) in enumerate(phases.items(), 1):
            if name not in done:
                say(f"{number} of {len(phases)}, {name}: {result}")
                act()
                done = [*done, name]
                write_manifest(out / RUN, {**inputs, "done": done})
    finally:
        lock.release()


def _done(out: Path, inputs: dict[str, Any], phases: dict[str, tuple[Path, Callable[[], None]]]) -> list[str]:
    """The phases up to the first that is not done, or whose result is gone.

    Raises:
        InputError: another run in ``out``.
    """
    there = {name: result.name for name, (result, _) in phases.items() if result.exists()}
    start_or_go_on(out / RUN, inputs, "out", ", ".join(there.values()), done=[])
    marked = told(out / RUN, done=list)["done"]
    return list(takewhile(lambda name: name in marked and name in there, phases))


def report(out: Path, served: bool = True) -> int:
    """Say what came of it, ``served`` by vLLM, as far as is known; the exit code is that of evaluation."""
    file = out / "evaluation.json"
    found = told(file, acceptance_length=float, prompts=int, lossless=bool)
    counted = f"acceptance length {found['acceptance_length']:.3f} over {found['prompts']} held-out prompts"
    ties = f", {found['near_ties']} of them a near tie" if found.get("near_ties") else ""
    if found["lossless"]:
        say(f"{counted}{ties}; {'serve' if served else 'not served by vLLM:'} {out / 'draft'}")
        return 0
    say(f"{counted}{ties}; drafting changed tokens beyond rounding, see differences in {file}")
    return 1


command = flags.command(DraftSettings, hushed(make))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see :func:`ports.commands.exit_code`."""
    return flags.run(command, sys.argv[1:] if argv is None else argv)
