"""What the prototypes called things, and what each is called here.

Everywhere else a thing has one name, in flags, YAML files and the environment (``SPECULATOR_...``). The trainers' and
data generation's own programs (``python -m ports.eagle3.train``, ``ports.hass.train``, ``ports.generate``) take the
prototypes' command lines as they are; under ``speculator`` such a word is understood with a
line that names ours. Settings' fields have the prototypes' names, and their aliases come from here.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

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
"""Of a field, or of a prototype's flag."""

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
    "k": "speculative_tokens",
    "tokens": "max_new_tokens",
}
"""What EAGLE, SpecForge, vLLM, transformers or readers call a thing: refused like any unknown flag, with our word."""

FIXED = {"ttt_alignment": "`draft` trains with chain, and drafts are measured as servers run them"}
"""Why a command does not take a flag of another one."""

HIDDEN = {"epoch"}
"""Flags that no help shows: what takes their place means a little else."""

IDLE = {"data_num": "the prototypes never use it", "topk_w": "the prototypes log it and never add topkloss"}
"""Flags that do nothing, and why."""


def public_name(field: str) -> str:
    """What a settings' field is called outside."""
    return NOW.get(field, field)


def tell(line: str) -> None:
    """To stderr."""
    print(f"note: {line}", file=sys.stderr)


def respelled(words: Sequence[str], known: Collection[str], quiet: bool) -> list[str]:
    """A command line with hyphens in its flags, and our words for the prototypes', told unless ``quiet``."""
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
        new = NOW.get(name, name) if name not in known else name
        if new != name and not quiet:
            tell(f"{flag} is --{new.replace('_', '-')} now")
        found.append(f"--{new.replace('_', '-')}{equals}{value}")
    return found
