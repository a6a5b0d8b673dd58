"""What a run of ``speculator draft`` takes of the disk and of a device's memory, before anything is loaded."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import SimpleQueue

from ports.draft.phases import BATCH_TOKENS
from ports.draft.plan import Plan
from ports.draft.processes import run_subprocess
from ports.errors import InputError
from ports.estimate import COPIES, FLOAT, build_objective, training_memory
from ports.files import check_output, gigabytes
from ports.generate.answers import Asking, rounds_of
from ports.generate.conversations import Message
from ports.generate.engines import longest_dialogue
from ports.generate.families import load_family
from ports.generate.records import HEADER_BYTES, geometry_of
from ports.generate.run import bytes_in
from ports.numerics import best_device, free_memory
from ports.verifier.loading import check_verifier, states_bytes, verifier_parameters
from ports.verifier.tokenizer import open_tokenizer

SUPERVISED = 0.6
"""Share of the tokens in the loss, where answers are given, about."""

TURN = 8
"""Tokens that a chat template puts around a turn, about."""

KEPT = 3
"""Checkpoints at a time: the best, the last, and one that is being written."""

ADVICE = {
    "answers and records": "more devices a copy, --tensor-parallel, or a smaller verifier",
    "evaluation": "a smaller verifier; where it fits, the phases before are commands of their own",
    "training": "fewer --max-new-tokens, a smaller --batch-size, or a narrower --draft-config",
}
"""What to change where a phase does not fit."""


@dataclass(frozen=True)
class Work:
    """In tokens, with at most so many an answer: ``tokens`` of all dialogues, of which ``answered`` will be the
    verifier's own, and the ``longest`` of them."""

    tokens: int
    answered: int
    longest: int


def work(plan: Plan) -> Work:
    """About; what a template puts around turns is guessed.

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
    given = [frame + count(talk) + TURN * max(0, len(talk) - len(first) - 1) for talk in talks]
    answered = [own * len(rounds_of(row)) * settings.max_new_tokens for row in dialogues]
    lengths = [sum(each) for each in zip(given, answered, strict=True)]
    return Work(sum(lengths), sum(answered), min(max(lengths), longest_dialogue(settings.model)))


def memory(plan: Plan, asked: Work) -> dict[str, dict[str, int]]:
    """Bytes that the phases take of a device at least, by what holds them; the longest dialogue is the one that counts.

    On a CPU the processes of training share its memory, and so do copies of the verifier.
    """
    settings, processes = plan.settings, plan.num_processes
    shape = geometry_of(settings.algorithm, settings.model, dtype="auto")
    rows, share = settings.bs // processes, asked.answered / asked.tokens or SUPERVISED
    inputs = plan.likely_config(), settings.forward_num_total, rows * asked.longest, share, processes
    training = training_memory(*inputs, half=plan.precision == "bf16")
    together, copies = (processes, settings.copies or 1) if best_device().type == "cpu" else (1, 1)
    stored, verifier = plan.recorded != "ids", shape.item_bytes * verifier_parameters(settings.model)
    tokens = max(BATCH_TOKENS, asked.longest) if stored else rows * asked.longest
    held = states_bytes(settings.model, shape.item_bytes, tokens)
    alone = {"evaluation": {"the verifier on one device": verifier}} if plan.tensor_parallel > 1 else {}
    beside = {} if stored else {"the verifier beside it, for --keep-records none": verifier, "hidden states": held}
    return {
        "answers and records": {"verifier": copies * verifier, "hidden states": copies * held if stored else 0},
        "training": {name: together * size for name, size in {**training, **beside}.items() if size},
        **alone,
    }


def check_memory(needed: dict[str, dict[str, int]], free: int | None, devices: int = 1) -> None:
    """Look whether the phases fit.

    Raises:
        InputError: more than the ``free`` bytes of a device, where those are known; ``devices`` may share a verifier.
    """
    for name, parts in needed.items():
        room = None if free is None else free * (devices if "verifier" in parts else 1)
        if room is not None and sum(parts.values()) > room:
            expected = f"at least {gigabytes(sum(parts.values()))} for {name} ({listed(parts)}): {ADVICE[name]}"
            raise InputError(best_device().type, "memory", f"{gigabytes(room)} free", expected)


def listed(parts: dict[str, int]) -> str:
    """What holds how much."""
    return ", ".join(f"{part} {gigabytes(size)}" for part, size in parts.items())


def told_memory(needed: dict[str, dict[str, int]], free: int | None) -> list[str]:
    """What the phases take, in lines."""
    found = "" if free is None else f", of {gigabytes(free)} that are free"
    phases = listed({name: sum(parts.values()) for name, parts in needed.items()})
    return [
        f"memory of a device, at least: {phases}{found}",
        *(f"  {name}: {listed(parts)}" for name, parts in needed.items()),
    ]


def fit(plan: Plan) -> list[str]:
    """What the run takes, in lines.

    Raises:
        InputError: see :meth:`Plan.likely_config`, :func:`work` and :func:`ports.verifier.loading.check_verifier`; or
            it does not fit the disk, or a device.
        PhaseError: the process that asks the device ended otherwise.
    """
    settings, config = plan.settings, plan.likely_config()
    asked, shape = work(plan), geometry_of(plan.recorded, settings.model, dtype="auto")
    parameters = list(build_objective(config, settings.forward_num_total).parameters())
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    embedding = plan.verifier.hidden_size * plan.verifier.vocab_size if settings.algorithm == "eagle3" else 0
    checkpoints = min(plan.passes, KEPT)  # of the draft and two moments
    kept = FLOAT * (COPIES - 1) * checkpoints * trained
    kept += plan.dtype.itemsize * (embedding * (checkpoints + 1) + trained)
    disk = shape.bytes_of(asked.tokens) + plan.seen * HEADER_BYTES + kept
    advice = f" ({gigabytes(kept)} of them checkpoints): fewer --samples, or another disk"
    if not settings.dry_run:
        check_output(plan.out, "out", disk - bytes_in(plan.out), advice)
    check_verifier(settings.model)
    without = ", no hidden states on it" if plan.recorded == "ids" else ""
    return [
        f"{plan.seen:,} dialogues to train on in {plan.passes} passes, {plan.held_out} held out; "
        f"{'at most' if asked.answered else 'about'} {asked.tokens:,} tokens, {gigabytes(disk)} of disk{without}",
        *_asked_apart(plan, asked),
        f"training: {plan.num_processes} of {plan.devices} devices, --batch-size {settings.bs} of them together",
    ]


def _asked_apart(plan: Plan, asked: Work) -> list[str]:
    """Of memory, by a process that takes what it holds of the device with it: the phases need all of it."""
    told: SimpleQueue[list[str]] = multiprocessing.get_context("spawn").SimpleQueue()
    run_subprocess("draft", partial(_tell_memory, told, plan, asked))
    return told.get()


def _tell_memory(told: SimpleQueue[list[str]], plan: Plan, asked: Work) -> None:
    needed, free = memory(plan, asked), free_memory(best_device())
    if not plan.settings.dry_run:
        check_memory(needed, free, plan.tensor_parallel)
    told.put(told_memory(needed, free))
