"""``speculator draft``: from a chat model and prompts to a draft that can be served, phase by phase.

``OUT/`` holds ``data/`` (what is trained on, and what is held out), ``answers/``, ``records/`` with the vocabulary,
``draft.json``, ``checkpoints/``, ``draft/``, which is what a server opens, with its card, ``evaluation.json`` and
``check.json``. ``run.json`` says what all of it is made from, and which phases are done: the same command goes on with
the first that is not. Phases that compute are commands of their own, each in a process that gives its memory back.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from ports import flags
from ports.commands import hushed
from ports.draft.card import RUN
from ports.draft.fit import fit
from ports.draft.phases import Phase, phases_of, read_result
from ports.draft.plan import Plan
from ports.draft.processes import PhaseError
from ports.draft.settings import DraftSettings
from ports.errors import InputError
from ports.files import check_output, check_outside
from ports.generate.records import start_or_go_on, write_manifest
from ports.generate.run import say
from ports.training.checkpoint import DirectoryLock, remove_directory, sweep
from ports.verifier.interfaces import serving_of


def make(settings: DraftSettings) -> int:
    """Everything that is not done yet, or of a dry run what it takes.

    The exit code is 1 if a check fails or drafting changed a token beyond rounding, or how a phase ended, else 0.

    Raises:
        InputError: what is wrong with model, data or flags; or ``out`` holds a run that was made from something else.
    """
    if (launched := os.environ.get("WORLD_SIZE", "1")) != "1":
        expected = "1, which launches its training itself: --num-processes; on several machines, phase by phase"
        raise InputError("launcher", "processes", launched, expected)
    if not settings.dry_run:
        check_output(settings.out, "out")
    check_outside(settings.out, "out", settings.data, "data")
    plan = Plan(settings)
    if (served := serving_of(settings.algorithm, settings.model)).serves is not True:
        say(f"warning: {served.why}")
    try:
        if settings.dry_run:
            say("\n".join(fit(plan)))
            return 0
        measured = (settings.out / "evaluation.json").exists() and not settings.restart
        _go_through(plan, [] if measured else fit(plan))
    except PhaseError as error:
        return error.code
    return report(settings.out, served.serves is not False)


def _go_through(plan: Plan, lines: Sequence[str]) -> None:
    """Say ``lines``, and do what is not done yet."""
    out, inputs, phases = plan.out, plan.inputs(), phases_of(plan)
    lock = DirectoryLock(out, "out")
    try:
        sweep(out)
        if plan.settings.restart and (out / RUN).is_file():
            for each in {*(phase.result for phase in phases if phase.result.exists()), *out.glob("evaluation*.json")}:
                remove_directory(each)
        done = _done(out, inputs, phases)
        for line in lines:
            say(line)
        for number, phase in enumerate(phases, 1):
            if phase.name not in done:
                following = ", ".join(each.name for each in phases[number:])
                say(f"{number} of {len(phases)}, {phase.name}: {phase.result}" + (following and f"; then {following}"))
                phase.run()
                done = [*done, phase.name]
                write_manifest(out / RUN, {**inputs, "done": done})
    finally:
        lock.release()


def _done(out: Path, inputs: dict[str, Any], phases: Sequence[Phase]) -> list[str]:
    """The phases up to the first that is not done, or whose result is gone.

    Raises:
        InputError: another run in ``out``.
    """
    there = {phase.name: phase.result.name for phase in phases if phase.result.exists()}
    unsaid = {**DraftSettings.defaults(), "served_model": inputs["served_model"]}
    start_or_go_on(out / RUN, inputs, "out", ", ".join(there.values()), unsaid, "--restart", done=[])
    marked = read_result(out / RUN, done=list)["done"]
    return list(takewhile(lambda name: name in marked and name in there, (phase.name for phase in phases)))


def report(out: Path, served: bool = True) -> int:
    """Say what came of it; 1 if the check of the draft found a fault, or evaluation a token that drafting changed.

    That vLLM does not serve the verifier is none: it was said before anything was made.
    """
    file, draft = out / "evaluation.json", out / "draft"
    found = read_result(file, acceptance_length=float, prompts=int, lossless=bool)
    counted = f"acceptance length {found['acceptance_length']:.3f} over {found['prompts']} held-out prompts"
    ties = f", {found['near_ties']} of them a near tie" if found.get("near_ties") else ""
    findings = read_result(out / "check.json", findings=list)["findings"]
    faults = (each for each in findings if each["state"] == "fault")
    fault = next((each for each in faults if served or each["step"] != "served"), None)
    if not found["lossless"]:
        say(f"{counted}{ties}; drafting changed tokens beyond rounding, see differences in {file}")
    elif fault is not None:
        say(f"{counted}{ties}; {draft} is not what it should be: {fault['step']}: {fault['figure']}: {fault['advice']}")
    else:
        missing = [f"{each['step']} not checked: {each['advice']}" for each in findings if each["state"] == "left out"]
        say("; ".join([f"{counted}{ties}", f"{'serve' if served else 'not served by vLLM:'} {draft}", *missing]))
    return int(fault is not None or not found["lossless"])


command = flags.command(DraftSettings, hushed(make))
