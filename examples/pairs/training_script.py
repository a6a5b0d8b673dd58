"""A training script of another project as the original of a pair: unmodified, up to its first optimizer step.

It runs in a process of its own, from a checkout whose files are looked at first. Nothing of it is edited; what it needs
on one CPU beside today's packages are names replaced in that process. The other side are formulas of this project that
can do each thing the script's way.
"""

from __future__ import annotations

import ports  # noqa: F401  # isort: skip  (a torchaudio of another build must not break transformers)

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from parity import CommandSide, FolderSide, KnownDifference, Pair, Trace, View, write_trace
from parity.environment import describe, deterministic
from parity.errors import InputError
from parity.files import read_sample
from parity.fixtures import RECORDINGS
from parity.prototypes.case import RecordedCase, read_case
from parity.prototypes.reference.loop import Setup, prepare
from parity.side import Run
from parity.study import flag

Tensors = dict[str, Tensor]
EMPTY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Script:
    """A script in a checkout: ``folder`` goes on the path, ``hashes`` are the SHA-256 of what a run loads."""

    name: str
    repository: str
    commit: str
    folder: str
    file: str
    hashes: Mapping[str, str]

    @property
    def remedy(self) -> str:
        """How to get the checkout."""
        return f"git clone https://github.com/{self.repository} DIR && git -C DIR checkout {self.commit[:8]}"

    def side(self, pair: str, root: Path) -> CommandSide:
        """The script of a checkout, run by the file of a pair.

        Raises:
            InputError: a file that is missing or another; nothing of it is run then.
        """
        for name, wanted in self.hashes.items():
            file = root / self.folder / name
            found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "missing"
            if found != wanted:
                expected = f"{wanted}, of {self.repository} at {self.commit}"
                raise InputError(file, "SHA-256", found, expected)
        return CommandSide([sys.executable, pair, "{case}", "{out}", str(root.resolve())], self.name)

    def place(self, root: Path) -> Path:
        """What goes on the path."""
        return root / self.folder


@dataclass(frozen=True)
class FirstBatch:
    """The first batch of a recorded case of a prototype; ``every_row``: all its positions are in the loss."""

    source: RecordedCase
    every_row: bool = False

    @property
    def name(self) -> str:
        return self.source.name + ("_every_row" if self.every_row else "")

    @property
    def files(self) -> list[Path]:
        return [self.source.tmpdir / self.source.meta.samples_files[i] for i in self.source.order[: self.source.bs]]

    def samples(self) -> list[Tensors]:
        """As on disk: ``input_ids``, ``loss_mask`` [T], ``hidden_state`` [T, F] and, for Eagle3, ``target`` [T, h]."""
        samples = [read_sample(file, ("input_ids", "loss_mask", "hidden_state")) for file in self.files]
        ones = [{"loss_mask": torch.ones_like(sample["loss_mask"])} if self.every_row else {} for sample in samples]
        return [{**sample, **mask} for sample, mask in zip(samples, ones)]

    def setup(self) -> Setup:
        """Weights, configuration and vocabulary map that the prototype started from."""
        return prepare(self.source)


def first_batch(name: str, every_row: bool = False) -> FirstBatch:
    """Of a shipped recording."""
    return FirstBatch(read_case(RECORDINGS / name), every_row)


def padded(samples: Sequence[Tensors], name: str) -> Tensor:
    """One tensor [B, T, ...], zeros on the right."""
    return nn.utils.rnn.pad_sequence([sample[name] for sample in samples], batch_first=True)


@dataclass(frozen=True)
class Formulas:
    """A side that computes a case's tensors, by a trace's names, with ``known_differences`` done otherwise."""

    compute: Callable[[FirstBatch, frozenset[str]], Tensors]
    name: str = "formulas"
    known_differences: frozenset[str] = frozenset()

    @contextmanager
    def trace(self, case: FirstBatch) -> Iterator[Run]:
        """Runs now."""
        with deterministic():
            yield Run(Trace(self.name, case.name, "float32", self.compute(case, self.known_differences)))


def of_steps(
    batch: Tensors, hidden: Sequence[Tensor], logits: Sequence[Tensor], losses: Sequence[Tensor], total: Tensor
) -> Tensors:
    """Every step and the total loss by a trace's names, and which positions are no padding."""
    named = {"hidden": hidden, "logits": logits, "loss": [loss.reshape(1) for loss in losses]}
    steps = {f"mb0.step{s}.{name}": value for name, values in named.items() for s, value in enumerate(values)}
    found = {**steps, "mb0.loss": total.reshape(1), "mb0.batch.attention_mask": batch["attention_mask"]}
    return {name: value.detach() for name, value in found.items()}


def gradients(weights: Mapping[str, Tensor]) -> Tensors:
    """Of the weights that have one, by a trace's names."""
    return {f"mb0.grad.{name}": value.grad for name, value in weights.items() if value.grad is not None}


def view(name: str, shift: int = 0) -> View:
    """Positions p >= ``shift`` that are no padding; the script holds p at index p - ``shift``."""

    def rows(trace: Trace, name: str) -> Tensor:
        real = trace.tensors["mb0.batch.attention_mask"].bool()
        return real & (torch.arange(real.shape[1]) >= shift)

    return View(name, original=lambda value, trace: value.roll(shift, 1), rows=rows)


def pair(
    name: str,
    port: Formulas,
    cases: Sequence[FirstBatch],
    texts: Mapping[str, str],
    file: str,
    script: Script,
    views: Sequence[View],
    names: Mapping[str, str | None] | None = None,
) -> Pair:
    """A script against formulas; ``texts`` are known differences by id, ``file`` is the pair's, which runs it."""
    return Pair(
        name=name,
        original=FolderSide(Path(file).parent / "recorded" / script.name.lower(), script.name),
        port=port,
        cases=cases,
        names=names,
        views=views,
        known_differences=[KnownDifference(one, text, flag(one)) for one, text in texts.items()],
        strict=True,
        not_applicable={"curve": "one step is taken", "configuration": "docs/originals.md lists the script's settings"},
        live=lambda root: script.side(file, root),
        remedy=script.remedy,
    )


class StepDoneError(Exception):
    """The first optimizer step was reached: everything that is wanted has been computed."""


@dataclass
class Heard:
    """What is heard of a running script: tensors by a trace's names, settings, and what was arranged from outside."""

    tensors: Tensors = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=lambda: {"arranged": []})

    def tensor(self, name: str, value: Tensor) -> None:
        """A copy; scalars become [1]."""
        self.tensors[f"mb0.{name}"] = value.detach().reshape(value.shape or (1,)).clone()

    def next_step(self, what: str, value: Tensor) -> None:
        """Of the step after those that were heard."""
        self.tensor(
            f"step{sum(name.startswith('mb0.step') and name.endswith(what) for name in self.tensors)}.{what}", value
        )

    def arranged(self, line: str) -> None:
        """Something was arranged."""
        self.settings["arranged"].append(line)


def answer(run: Callable[[FirstBatch, Path, Heard], None], script: Script, cases: Sequence[FirstBatch]) -> None:
    """The process of a script, ``FILE CASE TRACE ROOT``: run it in an empty folder and write the trace."""
    name, out, root = sys.argv[1:]
    case, heard = next(case for case in cases if case.name == name), Heard()
    os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    torch.set_num_threads(1)
    sys.path.insert(0, str(script.place(Path(root))))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run(case, Path(root), heard)
        os.chdir(root)
    trace = Trace(script.name, name, "float32", heard.tensors, configuration=heard.settings, environment=describe())
    write_trace(trace, out)


def give_weights(model: nn.Module, weights: Mapping[str, Tensor], own: Sequence[str] = ()) -> None:
    """Copy the weights, by the model's names, over its parameters; those of its ``own`` become zeros.

    Raises:
        InputError: a weight without a place, or a trained parameter without a weight.
    """
    mine = {name: value for name, value in model.named_parameters() if not name.startswith("target_model.")}
    given = {**{name: torch.zeros_like(mine[name]) for name in own}, **weights}
    missing = {name for name, value in mine.items() if value.requires_grad} - set(given)
    if missing or not set(given) <= set(mine):
        found = f"unknown {sorted(set(given) - set(mine))}, missing {sorted(missing)}"
        raise InputError("initial weights", "names", found, "the draft's parameters")
    with torch.no_grad():
        for name, value in given.items():
            mine[name].copy_(value)


def complaint(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """How a call ends; empty if well."""
    try:
        call(*arguments, **named)
    except Exception as error:  # whatever the script's code says
        return f"{type(error).__name__}: {str(error).partition(', got')[0]}"
    return ""


def unscaled(case: FirstBatch, file: str) -> Callable[[Any], Any]:
    """Write the draft config without rotary scaling, which their config class refuses; what comes of it, as of old."""
    values = {**json.loads(case.source.configpath.read_text()), "rope_scaling": None}
    Path(file).write_text(json.dumps(values))

    def of_old(config: Any) -> Any:  # as the transformers of their time held it
        config.rope_theta, config.rope_scaling = values.get("rope_theta", 10000.0), None
        return config

    return of_old


def arrange(heard: Heard, batch_size: int, files: Sequence[Path] = ()) -> None:
    """Loaders give samples in order and in this process, perhaps of ``files`` alone; no GPU, and nothing is logged."""
    real: Any = torch.utils.data.DataLoader

    class Serial(real):  # type: ignore[misc]
        def __init__(self, dataset: Any, **named: Any) -> None:
            if files:
                dataset.data = list(map(str, files))
            fixed = {"batch_size": batch_size, "num_workers": 0, "pin_memory": False, "shuffle": False}
            super().__init__(dataset, **{**named, **fixed, "sampler": None})

    torch.utils.data.DataLoader = Serial  # type: ignore[misc]
    chosen = ", the case's first batch" if files else ""
    heard.arranged(f"DataLoader(batch_size={batch_size}, shuffle=False, num_workers=0, pin_memory=False){chosen}")
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    heard.arranged("torch.Tensor.cuda = identity")
    quiet: Any = ModuleType("wandb")
    quiet.login = quiet.init = quiet.log = lambda *_, **__: None
    sys.modules["wandb"] = quiet
    heard.arranged("wandb = nothing")
