"""What a run of ``speculator draft`` will do, and what all of it depends on, before anything is done."""

from __future__ import annotations

import json
import math
import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ports.draft.settings import NEUTRAL, DraftSettings
from ports.eagle3.config import load_draft_config as load_eagle3
from ports.errors import InputError
from ports.generate.answers import read_dialogues
from ports.generate.copies import copies_of, devices_for
from ports.generate.families import load_family
from ports.generate.records import digest
from ports.generate.vocabulary import SIZES
from ports.hass.config import load_draft_config as load_hass
from ports.numerics import best_device, has_bf16_units
from ports.training.alignment import Alignment
from ports.training.derived import derived_config
from ports.training.draft_config import read_config_dict
from ports.training.records import SCHEMA
from ports.training.settings import Precision
from ports.verifier.attention import longest_prompt
from ports.verifier.config import verifier_config
from ports.verifier.fingerprint import verifier_fingerprint
from ports.verifier.tokenizer import open_tokenizer

STEPS = 2000
"""Optimizer steps that a small data set is trained for, as far as :data:`PASSES` lets it."""

PASSES = (2, 8)
"""At least and at most."""

WIDE, RATES = 4096, (1e-4, 4e-4)
"""Peak learning rate of a draft so wide or wider, about what EAGLE-3's are trained at, and the highest, which at
h = 576 is worth more than that or 1e-3 (docs/results.md). In between it goes with h^-0.7, through the two."""

EVALUATED = 128
"""Tokens of an answer to a held-out prompt at most."""

WORKERS = 8
"""Loader processes of a device at most, as many as the trainer's own default."""

VALIDATED = 0.05
"""Share of the records that the best checkpoint is chosen by, where there are enough of them."""


class Plan:
    """Of a run in ``settings.out``: the dialogues, and every number that the command line left open.

    Raises:
        InputError: dialogues, verifier or flags that no run can be made of.
    """

    def __init__(self, settings: DraftSettings) -> None:
        self.settings = DraftSettings.model_construct(**settings.model_dump())  # a class that pickle finds again
        self.out = settings.out
        self.dialogues = read_dialogues(settings.data, settings.samples)
        self.held_out = min(settings.held_out, len(self.dialogues) // 5)
        if self.held_out == 0:
            raise InputError(settings.data, "rows", len(self.dialogues), "at least 5: some of them are held out")
        self.verifier = verifier_config(settings.model)
        load_family(settings.chat_template).checked_template(open_tokenizer(settings.model))
        longest_prompt(settings.model, self.evaluated, settings.forward_num_total)
        trained = self.seen - validated(self.seen)
        if settings.bs > trained:
            raise InputError(
                "command line", "--batch-size", settings.bs, f"at most {trained}, the dialogues to train on"
            )
        if settings.bs % self.num_processes:
            expected = f"a number that divides --batch-size {settings.bs}, which is of all processes together"
            raise InputError("command line", "--num-processes", settings.num_processes, expected)
        copies_of(settings.copies, self.tensor_parallel)
        if settings.keep_records == "none" and (settings.tensor_parallel or 1) > 1:
            expected = "all, or --tensor-parallel 1: training holds a verifier on one device"
            raise InputError("command line", "--keep-records", "none", expected)
        if self.num_processes > self.devices > 1:
            expected = f"at most {self.devices}, the devices"
            raise InputError("command line", "--num-processes", self.num_processes, expected)

    @property
    def num_processes(self) -> int:
        """Of training: the number asked for, or as many as there are devices to share the samples of a step evenly."""
        most = min(self.devices, self.settings.bs)
        return self.settings.num_processes or next(n for n in range(most, 0, -1) if self.settings.bs % n == 0)

    @property
    def devices(self) -> int:
        """That this command sees; the CPU is one."""
        return max(1, torch.accelerator.device_count())

    @cached_property
    def tensor_parallel(self) -> int:
        """Devices of a copy of the verifier that answers or gives hidden states."""
        return self.settings.tensor_parallel or devices_for(self.settings.model)

    @property
    def num_workers(self) -> int:
        """Loader processes of one of training: none on a CPU, which is busy, else of the machine's cores a share."""
        cores = (os.cpu_count() or 1) // self.num_processes
        return 0 if best_device().type == "cpu" else max(1, min(WORKERS, cores - 1))

    @property
    def recorded(self) -> str:
        """What records are made for, as :func:`ports.generate.records.geometry_of` has it: ``ids`` for no features."""
        return self.settings.algorithm if self.settings.keep_records == "all" else "ids"

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
    def dtype(self) -> torch.dtype:
        """The verifier's, in which a server computes with the draft too."""
        return getattr(self.verifier, "dtype", None) or torch.float32

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
        return {
            "format_version": SCHEMA,
            "verifier": verifier_fingerprint(self.settings.model),
            "data": digest([self.dialogues]),
            "draft": self.config,
            **self.settings.model_dump(mode="json", exclude={*NEUTRAL, "samples", "configpath"}),
            "served_model": self.settings.served_model,
            "passes": self.passes,
            "num_processes": self.num_processes,
            "lr": self.lr,
            "mixed_precision": self.precision,
        }


def validated(records: int) -> int:
    """How many of them the best checkpoint is chosen by, and are not trained on."""
    return round(VALIDATED * records) if VALIDATED * records >= 2 else 0
