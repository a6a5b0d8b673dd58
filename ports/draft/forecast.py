"""Time and disk that a run of ``speculator draft`` takes, about."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.queues import SimpleQueue
from typing import Any

from ports.draft.phases import BATCH_TOKENS, CHECKED
from ports.draft.plan import Plan
from ports.draft.processes import run_subprocess
from ports.estimate import Clock, build_objective, step_seconds, verifier_seconds
from ports.evaluate.measure import DEFAULT_CONCURRENCY
from ports.files import check_output, gigabytes
from ports.generate.answers import Asking, rounds_of
from ports.generate.chat import load_family
from ports.generate.conversations import Message
from ports.generate.engines import choose_engine
from ports.generate.records import geometry_of
from ports.generate.run import bytes_in
from ports.verifier.loading import check_verifier
from ports.verifier.tokenizer import open_tokenizer

START = 15
"""Seconds until a phase has loaded its libraries and models, about."""

SUPERVISED = 0.6
"""Share of the tokens in the loss, where answers are given, about."""

KEPT = 3
"""Checkpoints on the disk at most: the best, the last, and the one that is being written."""

TURN = 8
"""Tokens that a chat template puts around a turn, about."""


def work(plan: Plan) -> tuple[int, int]:
    """Tokens that are said before the answers, about, and how many answers are to be given.

    Raises:
        InputError: no chat template, or one that refuses a dialogue.
    """
    settings, own, dialogues = plan.settings, plan.settings.answers == "own", plan.dialogues[: plan.seen]
    asking = Asking(settings, open_tokenizer(settings.model), load_family(settings.chat_template))
    asked = 0 if own else plan.seen  # of given answers, those that the template refuses are left out
    asking.check(plan.dialogues[asked:], asked)

    def count(turns: Sequence[Message]) -> int:
        ids = asking.tokenizer([turn["content"] for turn in turns], add_special_tokens=False)["input_ids"]
        return sum(min(len(each), asking.room) for each in ids)

    first = rounds_of(dialogues[0])[0]
    frame = len(asking.ids(0, first)) - count(first)  # also what is put before the first answer
    talks = [[turn for said in rounds_of(row) for turn in said] if own else row for row in dialogues]
    given = sum(frame + count(talk) + TURN * max(0, len(talk) - len(first) - 1) for talk in talks)
    return given, own * sum(len(rounds_of(row)) for row in dialogues)


def seconds(plan: Plan, given: int, answers: int, objective: Any, clock: Clock = time.perf_counter) -> dict[str, float]:
    """That the phases compute, by name: those of a batch, timed here, times the number of batches.

    Args:
        given: see :func:`work`, and ``answers``.
        objective: :func:`ports.estimate.build_objective` of a draft like the one that will be trained.
        clock: tells the time, in seconds.
    """
    settings, answer = plan.settings, plan.settings.max_new_tokens
    tokens = given + answers * answer
    length = math.ceil(tokens / plan.seen)
    engine = choose_engine(settings.model, None, settings.engine, settings.server, settings.max_concurrency)
    rows, together = min(plan.seen, max(1, BATCH_TOKENS // length)), min(max(1, answers), engine.max_concurrency)
    held = min(DEFAULT_CONCURRENCY, plan.held_out)
    shapes = [(rows, 0), (together, 1), (held, 1), (held, settings.forward_num_total + 1)]
    read, said, plain, checked = verifier_seconds(settings.model, length, shapes, clock)
    token = read / rows / length
    supervised = answers * answer / tokens or SUPERVISED
    step = step_seconds(objective, settings.bs, length, supervised, clock, half=plan.precision == "bf16")
    decoding = (plain + checked / 2) * plan.evaluated * math.ceil(plan.held_out / held)
    found = {
        "answers": engine.pace * (token * given + said * answer * math.ceil(answers / together)) if answers else 0,
        "records": token * tokens,
        "training": step * math.ceil(plan.seen / settings.bs) * plan.passes,
        "evaluation": decoding,
        "check": decoding + token * tokens * min(1, CHECKED / plan.seen),
    }
    return {name: seconds for name, seconds in found.items() if seconds}


def _timed(plan: Plan, given: int, answers: int) -> dict[str, float]:
    """:func:`seconds`, in a process that takes the device's memory with it: the phases need all of it."""
    told: SimpleQueue[dict[str, float]] = multiprocessing.get_context("spawn").SimpleQueue()
    run_subprocess("draft", partial(_tell_seconds, told, plan, given, answers))
    return told.get()


def forecast(plan: Plan) -> list[str]:
    """Time and disk that the phases take, about.

    Raises:
        InputError: see :meth:`Plan.likely_config`, :func:`work` and :func:`ports.verifier.loading.check_verifier`; or
            too little room on the disk.
        PhaseError: the process that measures it ended otherwise.
    """
    settings, objective = plan.settings, build_objective(plan.likely_config(), plan.settings.forward_num_total)
    given, answers = work(plan)
    tokens = given + answers * settings.max_new_tokens
    draft = sum(each.numel() for each in objective.parameters() if each.requires_grad)
    embedding = plan.verifier.hidden_size * plan.verifier.vocab_size if settings.algorithm == "eagle3" else 0
    checkpoints = min(plan.passes, KEPT)  # of the draft and two moments
    kept = 12 * checkpoints * draft + plan.dtype.itemsize * (embedding * (checkpoints + 1) + draft)
    shape = geometry_of(settings.algorithm, settings.model, dtype="auto")
    disk = shape.bytes_of(tokens) + kept
    check_output(plan.out, "out", disk - bytes_in(plan.out))
    check_verifier(settings.model)
    minutes = {name: (START + each) / 60 for name, each in _timed(plan, given, answers).items()}
    listed = ", ".join(f"{name} {math.ceil(each):,}" for name, each in minutes.items())
    return [
        f"{plan.seen:,} dialogues to train on in {plan.passes} passes, {plan.held_out} held out; "
        f"{'at most' if answers else 'about'} {tokens:,} tokens",
        f"about {math.ceil(sum(minutes.values())):,} minutes ({listed}) and {gigabytes(disk)} of disk",
    ]


def _tell_seconds(told: SimpleQueue[dict[str, float]], plan: Plan, given: int, answers: int) -> None:
    objective = build_objective(plan.likely_config(), plan.settings.forward_num_total)
    told.put(seconds(plan, given, answers, objective))
