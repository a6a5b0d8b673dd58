"""The phases of a run, in order: what is there when one is done, and how it is done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ports.draft.card import CARD, write_pages
from ports.draft.plan import VALIDATED, Plan, validated
from ports.draft.processes import in_process, in_processes
from ports.errors import InputError
from ports.files import read_json
from ports.generate.address import API_KEY
from ports.generate.answers import AnswersSettings, rounds_of
from ports.generate.records import write_manifest
from ports.generate.run import say
from ports.generate.vocabulary import VocabularySettings, write_vocabulary
from ports.training.alignment import Alignment
from ports.training.checkpoint import BEST, write_directory
from ports.training.records import list_records
from ports.training.saving import write_published
from ports.training.settings import public_name

LOG = "log.txt"
"""What libraries say."""

BATCH_TOKENS = 4096
"""Tokens of a forward of the verifier, whose hidden states are all held."""

CHECKED = 8
"""Records that are computed again at the end; training has held some against the verifier already."""


@dataclass(frozen=True)
class Phase:
    """``run`` makes ``result``, from what the phases before it made."""

    name: str
    result: Path
    run: Callable[[], None]


def phases_of(plan: Plan) -> list[Phase]:
    """In order."""
    found = [
        ("data", "data", _divide),
        ("answers", "answers", _answer),
        ("records", "records", _record),
        ("config", "draft.json", _configure),
        ("training", "checkpoints", _train),
        ("draft", "draft", _publish),
        ("evaluation", "evaluation.json", _evaluate),
        ("check", "check.json", _check),
        ("card", f"draft/{CARD}", lambda plan: write_pages(plan.settings)),
    ]
    given = plan.settings.answers == "given"
    return [
        Phase(name, plan.out / result, partial(run, plan))
        for name, result, run in found
        if name != "answers" or not given
    ]


def _divide(plan: Plan) -> None:
    first_round = [rounds_of(dialogue)[0] for dialogue in plan.dialogues[plan.seen :]]
    parts = {"train": plan.dialogues[: plan.seen], "held_out": first_round}

    def fill(folder: Path) -> None:
        folder.mkdir()
        for name, rows in parts.items():
            lines = [json.dumps({"messages": turns}) + "\n" for turns in rows]
            (folder / f"{name}.jsonl").write_text("".join(lines))

    write_directory(plan.out / "data", fill)


def _answer(plan: Plan) -> None:
    own = {"model", "data", "out", "samples", "progress", "trust_remote_code", "restart", "api_key"}
    shared = AnswersSettings.model_fields.keys() - own
    if plan.settings.api_key:  # no command line shows it
        os.environ[API_KEY] = plan.settings.api_key.get_secret_value()
    values = {name: getattr(plan.settings, name) for name in shared}
    files = {"data": plan.out / "data/train.jsonl", "out": plan.out / "answers/answers.jsonl"}
    _command(plan, "answers", verifier=plan.settings.model, **values, **files)


def _record(plan: Plan) -> None:
    settings = plan.settings
    texts = "answers/answers.jsonl" if settings.answers == "own" else "data/train.jsonl"
    _command(
        plan,
        "records",
        model_path=settings.model,
        data_path=plan.out / texts,
        dataset="any",
        samples=plan.seen - 1,
        outdir=plan.out / "records",
        algorithm=plan.recorded,
        chat_template=settings.chat_template,
        dtype="auto",
        batch_tokens=BATCH_TOKENS,
        engine="transformers" if settings.engine == "transformers" else "auto",  # vllm: it can answer for any class
        on_bad_conversation="skip",
        copies=settings.copies,
        tensor_parallel=settings.tensor_parallel,
    )


def _configure(plan: Plan) -> None:
    """The vocabulary is written before the config, which names its size."""
    config, records = plan.config, plan.out / "records"
    if plan.settings.algorithm == "eagle3":
        named = config.get("draft_vocab_size")
        chosen = write_vocabulary(
            VocabularySettings(tmpdir=records, basepath=plan.settings.model, draft_vocab_size=named)
        )
        say(f"{chosen.draft_vocab_size:,} tokens cover {chosen.covered / max(chosen.tokens, 1):.2%} of the records")
        config = {**config, "draft_vocab_size": chosen.draft_vocab_size}
    write_manifest(plan.out / "draft.json", config)


def _train(plan: Plan) -> None:
    settings, records = plan.settings, plan.out / "records"
    maps = {name: records / f"{name}.npy" for name in ("t2d", "d2t")} if settings.algorithm == "eagle3" else {}
    _command(
        plan,
        f"train {settings.algorithm}",
        basepath=settings.model,
        configpath=plan.out / "draft.json",
        tmpdir=records,
        cpdir=plan.out / "checkpoints",
        ckpt_path="auto",
        keep_last=1,
        epochs=plan.passes,
        ttt_alignment=Alignment.CHAIN.value,
        num_workers=plan.num_workers,
        noise_stream="keyed",  # noise and order that the number of processes does not change
        group_by_length=True,
        loss_normalisation="global",
        bs=settings.bs // plan.num_processes,
        lr=plan.lr,
        mixed_precision=plan.precision,
        **{name: getattr(settings, name) for name in ("forward_num_total", "seed")},
        **maps,
        **({"online": True, "verifier_dtype": "auto"} if plan.recorded == "ids" else {}),
        **({"val_fraction": VALIDATED} if validated(len(list_records(records))) else {}),
    )


def _publish(plan: Plan) -> None:
    """The best checkpoint as a server computes with it."""
    chosen = best_checkpoint(plan.out / "checkpoints", plan.passes)
    write_directory(plan.out / "draft", lambda folder: write_published(chosen, folder, plan.dtype))


def _evaluate(plan: Plan) -> None:
    words = [str(plan.out / "draft"), "--prompts", str(plan.out / "data/held_out.jsonl")]
    words += ["--max-new-tokens", str(plan.evaluated), "--contexts"]
    in_process("evaluate", [*words, "--json", str(plan.out / "evaluation.json")], (0, 1), plan.out / LOG)


def _check(plan: Plan) -> None:
    words = [str(plan.out / "draft"), "--records", str(plan.out / "records"), "--held", str(CHECKED)]
    words += ["--max-new-tokens", str(plan.evaluated), "--json", str(plan.out / "check.json")]
    words += ["--answers", plan.settings.answers]
    in_process("check", words, (0, 1), plan.out / LOG)


def _command(plan: Plan, name: str, **values: object) -> None:
    """Run one on settings by their fields, training in all its processes; a flag whose value is None is left out."""
    named = {public_name(field).replace("_", "-"): value for field, value in values.items() if value is not None}
    words = [f"--{flag}" if value is True else f"--{flag}={value}" for flag, value in named.items()]
    words.append("--progress" if plan.settings.progress else "--no-progress")
    if name.startswith("train ") and plan.num_processes > 1:
        in_processes(name, words, plan.num_processes)
    else:
        in_process(name, words, log=plan.out / LOG)


def best_checkpoint(cpdir: Path, passes: int) -> Path:
    """The one that ``best.json`` names, else that of the last pass.

    Raises:
        InputError: there is none.
    """
    numbered = sorted(cpdir.glob(f"*[a-z_]{passes - 1}"))
    name = read_result(cpdir / BEST, checkpoint=str)["checkpoint"] if (cpdir / BEST).is_file() else None
    found = [cpdir / name] if name else [each for each in numbered if not each.name.startswith("step_")]
    if not found or not (found[0] / "config.json").is_file():
        raise InputError(cpdir, "checkpoint", name or "none of the last pass", "what training saved")
    return found[0]


def read_result(file: Path, **kinds: type) -> Any:
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
