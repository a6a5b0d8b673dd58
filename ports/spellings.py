"""What things were called: the prototypes' words and this project's former ones, and what each is called now.

Everywhere else a thing has one name, in flags, YAML files and the environment (``SPECULATOR_...``). The trainers' and
data generation's own programs (``python -m ports.eagle3.train``, ``ports.hass.train``, ``ports.generate``) take the
prototypes' command lines as they are; under ``speculator`` an old word is understood for one version, with a line that
names the new one. Settings' fields have the prototypes' names, and their aliases come from here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ports.errors import InputError

PREFIX = "SPECULATOR_"
"""Of the environment's names."""

NOW = {
    **dict.fromkeys(("basepath", "model_path", "model"), "verifier"),
    **dict.fromkeys(("tmpdir", "data_path"), "data"),
    **dict.fromkeys(("cpdir", "outdir", "output"), "out"),
    "configpath": "draft_config",
    "bs": "batch_size",
    "passes": "epochs",
    "forward_num_total": "ttt_steps",
    "max_len": "max_length",
    "ckpt_path": "resume",
    "gpus_per_model": "tensor_parallel",
}
"""Of a field, or of an old flag of any command."""

ELSEWHERE = {
    **dict.fromkeys(("target_model_path", "base_model_path"), "verifier"),
    "train_data_path": "data",
    **dict.fromkeys(("output_dir", "output_path"), "out"),
    **dict.fromkeys(("num_epochs", "num_train_epochs"), "epochs"),
    "draft_model_config": "draft_config",
    "question_file": "prompts",
    "learning_rate": "lr",
    "per_device_train_batch_size": "batch_size",
    "ttt_length": "ttt_steps",
    "num_speculative_tokens": "speculative_tokens",
    "alignment": "ttt_alignment",
}
"""What EAGLE, SpecForge, vLLM, transformers or readers call a thing: refused like any unknown flag, with our word."""

FIXED = {"ttt_alignment": "`draft` trains with chain, and drafts are measured as servers run them"}
"""Why a command does not take a flag of another one."""

ANSWERS = {"batch_size": "max_concurrency"}
EVALUATE = {"tokens": "max_new_tokens", **ANSWERS}
BENCH = {"k": "speculative_tokens", **EVALUATE}
"""Old flags of one command alone; elsewhere the word may mean something else."""

HIDDEN = {"epoch"}
"""Flags that no help shows: what takes their place means a little else."""

IDLE = {"data_num": "the prototypes never use it", "topk_w": "the prototypes log it and never add topkloss"}
"""Flags that do nothing, and why."""

PREFIXES = ("PORT_", "GENERATE_", "DRAFT_", "ANSWERS_", "ESTIMATE_")
"""What the environment's names had after :data:`PREFIX`, by command."""

COMMANDS = {
    "speculator-generate": "records",
    "speculator-generate show": "records show",
    "speculator-generate estimate": "records estimate",
    "speculator-generate vocabulary": "vocabulary",
    "speculator-estimate": "estimate",
    "python -m ports.generate": "records",
    "python -m ports.generate show": "records show",
    "python -m ports.generate estimate": "records estimate",
    "python -m ports.generate vocabulary": "vocabulary",
    "eagle3-train": "train eagle3",
    "hass-train": "train hass",
    "python -m ports.evaluate": "evaluate",
    "python -m ports.serving": "serve",
    "python -m ports.serving.bench": "bench",
}
"""Old programs."""


def public_name(field: str) -> str:
    """What a settings' field is called outside."""
    return NOW.get(field, field)


def tell(line: str) -> None:
    """To stderr."""
    print(f"note: {line}", file=sys.stderr)


def respelled(words: Sequence[str], known: Collection[str], old: Mapping[str, str], quiet: bool) -> list[str]:
    """A command line with hyphens in its flags, and the new words for ``old`` ones, told unless ``quiet``."""
    found = []
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        if not flag.startswith("--"):
            found.append(word)
            continue
        if name in IDLE:
            tell(f"--{name} does nothing: {IDLE[name]}")
        if name in HIDDEN and not quiet:
            tell(f"--{name} n is --{name}s n + 1 now")
        new = old.get(name, name) if name not in known else name
        if new != name and not quiet:
            tell(f"{flag} is --{new.replace('_', '-')} now")
        found.append(f"--{new.replace('_', '-')}{equals}{value}")
    return found


def refuse_old_environment(known: Collection[str], old: Mapping[str, str]) -> None:
    """Raise InputError for a variable of a former version that means one of the flags ``known``."""
    for variable in os.environ:
        for prefix in PREFIXES:
            name = variable.removeprefix(PREFIX + prefix).lower()
            if variable.startswith(PREFIX + prefix) and variable[len(PREFIX) :].lower() not in known:
                new = old.get(name, name)
                if new in known:
                    raise InputError("environment", variable, "a name of before", f"{PREFIX}{new.upper()}")


def new_command(program: str, words: Sequence[str]) -> list[str]:
    """The words after ``speculator`` that an old program's command line has become, which is told."""
    program = program if program in COMMANDS else Path(program).name
    longer = f"{program} {words[0]}" if words else program
    old = longer if longer in COMMANDS else program
    tell(f"{old} is speculator {COMMANDS[old]} now")
    return [*COMMANDS[old].split(), *words[old == longer and longer != program :]]
