"""Run a port on a case through its own training loop and write down what it does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import clear_environment, patch_environment, set_seed
from safetensors.torch import save
from speculators import SpeculatorModel
from torch import Tensor, nn

import ports.eagle3.train
import ports.hass.train
import ports.training.runs
from parity.calls import gradients_of
from parity.environment import describe, deterministic, quietly
from parity.files import read_tensors
from parity.plants import Ground
from parity.prototypes.case import SETTINGS, TO_NATIVE, RecordedCase, command_line
from parity.prototypes.recorded import LOGGED, ReplaySampler, recorded_noise, refuse_misfits, samples_per_pass, start_of
from parity.prototypes.reference.loop import keep_steps, near_ties, rule_of
from parity.step import StepAuditor
from parity.trace import Point, Trace
from ports.flags import parse
from ports.numerics import fix_numerics
from ports.training.alignment import Alignment
from ports.training.checkpoint import WEIGHTS
from ports.training.data import Batch
from ports.training.loop import Loop, Plan
from ports.training.observer import Observer, StepRecord
from ports.training.runs import finish
from ports.training.saving import load_weights
from ports.training.settings import Eagle3Settings, HassSettings, TrainingSettings


@dataclass(frozen=True)
class Algorithm:
    """What the harness has to know of an algorithm to run its port.

    ``train`` offers ``build``, ``build_dataset`` and ``start``; checkpoints are ``cpdir/<checkpoint><pass>``.
    ``owns_vocabulary``: the draft has its own vocabulary map, and its checkpoint holds the verifier's embedding.
    """

    train: ModuleType
    settings: type[TrainingSettings]
    checkpoint: str
    adapter: str
    owns_vocabulary: bool


ALGORITHMS = {
    "eagle3": Algorithm(ports.eagle3.train, Eagle3Settings, "model", "ports.eagle3.adapter", True),
    "hass": Algorithm(ports.hass.train, HassSettings, "state_", "ports.hass.adapter", False),
}


@dataclass
class PortRun:
    """A finished run: its trace, the trained draft, where its checkpoints lie; ``unobserved`` makes its first loss."""

    trace: Trace
    draft: SpeculatorModel
    checkpoints: Path
    unobserved: Callable[[], float] | None


def settings_for(case: RecordedCase, cpdir: Path, **changes: Any) -> TrainingSettings:
    """What the port's own parser makes of the case's command line, whatever the environment says.

    ``changes`` are settings beside it, as are those that no flag of the prototypes has.
    """
    algorithm = ALGORITHMS[case.algorithm]
    values: dict[str, Any] = {
        **read_words(algorithm.settings, *(f"--{flag}={value}" for flag, value in command_line(case).items())),
        "cpdir": cpdir,
        "noise": case.noise,
        "shuffle": case.shuffle,
        "num_workers": 0,
        "records_check": "off",  # the prototype's side reads the same files
        "mixed_precision": "no" if case.dtype == "fp32" else "bf16",
        "progress": False,
        **({} if case.seed is None else {"seed": case.seed}),
    }
    if algorithm.owns_vocabulary:
        values |= {"t2d": case.fixture / "t2d.npy", "d2t": case.fixture / "d2t.npy"}
    return algorithm.settings(**{**values, **changes})


@cache
def read_words(settings: type[TrainingSettings], *words: str) -> Mapping[str, Any]:
    """What the port's parser makes of the words of a command line, by its own names."""
    with clear_environment():
        read = parse(settings, [*words, "--cpdir=elsewhere"])
    return {name: getattr(read, name) for name in read.model_fields_set}


def run_port(
    case: RecordedCase, cpdir: Path, seed: int = 0, live: bool = False, margin: float = 0.0, **changes: Any
) -> PortRun:
    """Train the port on ``case`` and trace it.

    Args:
        case: what to run.
        cpdir: where its checkpoints go.
        seed: set before the model is built, and again at the start of the loop when ``live``.
        live: draw order and noise afresh from ``seed`` instead of replaying the recorded ones.
        margin: within which near ties are counted, see :func:`parity.prototypes.reference.loop.near_ties`.
        changes: settings that differ from the case's.
    """
    with deterministic(seed):
        tracer = Tracer(case, seed, live, margin)
        loop = start_port(case, cpdir, live, tracer, seeded=True, **changes)
        tracer.describe(loop.plan)
        with quietly():  # the trace keeps what the loop prints
            finish(loop)
        tracer.trace.environment = describe(seed, loop.accelerator.device)
    unobserved = partial(first_loss, case, seed, live, **changes)
    return PortRun(tracer.trace, loop.plan.objective.draft, cpdir, unobserved)


def first_loss(case: RecordedCase, seed: int, live: bool, **changes: Any) -> float:
    """Of the first micro-batch of such a run, which is told when the step is made and not looked at before."""
    losses = LossObserver()
    with tempfile.TemporaryDirectory() as folder, deterministic(seed), quietly():
        loop = start_port(case, Path(folder), live, losses, seeded=True, **changes)
        if live:
            set_seed(seed)
        next(loop.optimizer_steps())
    return losses.losses[0]


class LossObserver(Observer):
    """Keeps the losses that a run tells, and looks at nothing."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def stepped(self, record: StepRecord, objective: nn.Module) -> None:
        self.losses.append(record.loss)


def start_port(
    case: RecordedCase,
    cpdir: Path,
    live: bool = False,
    observer: Observer | None = None,
    seeded: bool = False,
    **changes: Any,
) -> Loop:
    """The port's training loop on ``case``, from the recorded weights, ready to go.

    The weights are loaded as a user's are, from a checkpoint that ``--ckpt_path`` names; ``changes`` may name another.
    On the CPU, as recordings are; elsewhere if ``ACCELERATE_USE_CPU`` in the environment is false.

    Args:
        seeded: by the port's own setting, as its command does before it builds anything.
    """
    reset_accelerate()
    settings = settings_for(case, cpdir, **changes)
    if seeded:
        fix_numerics(settings.seed)
    train = ALGORITHMS[case.algorithm].train
    draft = train.build(settings)
    draw = recorded_noise(case.uniforms) if case.uniforms and not live else torch.rand_like
    dataset = train.build_dataset(settings, draft.config, draw)
    sampler = None if live or not case.shuffle else ReplaySampler(case.order, samples_per_pass(case))
    with (
        tempfile.TemporaryDirectory() as folder,
        patch_environment(accelerate_use_cpu=os.environ.get("ACCELERATE_USE_CPU", "true")),
        quietly(),
    ):
        if settings.ckpt_path is None:
            write_initial(draft, case, Path(folder))
            settings = settings.model_copy(update={"ckpt_path": Path(folder), "weights_only": True})
        loop: Loop = train.start(settings, draft, dataset, sampler, observer)
    return loop


@contextmanager
def planted_in_port(ground: Ground) -> Iterator[None]:
    """A fault in the draft, after the case's weights were loaded into it, and in the batches of the training loop."""
    batches = Loop._batches

    def loaded(draft: SpeculatorModel, folder: Path) -> None:
        load_weights(draft, folder)
        ground.build(draft)

    def fed(self: Loop) -> Iterator[Batch]:
        return map(ground.feed, batches(self))

    with mock.patch.object(ports.training.runs, "load_weights", loaded), mock.patch.object(Loop, "_batches", fed):
        yield


def trace_port(case: RecordedCase, **changes: Any) -> Trace:
    """Like :func:`run_port`, with checkpoints in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return run_port(case, Path(folder), **changes).trace


def load_initial(draft: SpeculatorModel, case: RecordedCase) -> None:
    """Give the draft the weights the recorded run started from, as a user loads them; errors as below."""
    with tempfile.TemporaryDirectory() as folder:
        write_initial(draft, case, Path(folder))
        load_weights(draft, Path(folder))


def write_initial(draft: SpeculatorModel, case: RecordedCase, folder: Path) -> None:
    """A checkpoint of the weights the recorded run started from; what it took from the verifier is the draft's own.

    Raises:
        InputError: they do not fit the draft.
    """
    native, ignored = TO_NATIVE[case.algorithm], {*(draft._keys_to_ignore_on_save or ())}
    weights = {native(name): value for name, value in start_of(case, read_tensors(case.initial)).items()}
    wanted = {*weights, *(name for name, value in draft.named_parameters() if value.requires_grad)}
    held = draft.state_dict()
    refuse_misfits(case.initial, weights, {name: value for name, value in held.items() if name in wanted})
    whole = {**{name: value for name, value in held.items() if name not in ignored}, **weights}
    (folder / WEIGHTS).write_bytes(save({name: value.contiguous().clone() for name, value in whole.items()}))


def reset_accelerate() -> None:
    """Forget the last run's accelerator, which is global to the process."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Tracer(Observer):
    """Writes the first optimizer step's tensors and every micro-batch's scalars into a trace."""

    def __init__(self, case: RecordedCase, seed: int, reseed: bool, margin: float) -> None:
        self.case, self.seed, self.reseed, self.margin = case, seed, reseed, margin
        self.trace = Trace("port", case.name, case.dtype)
        self.first_step = True
        self.rows = torch.zeros(0, dtype=torch.bool)
        self.ties: tuple[int, ...] = ()

    def describe(self, plan: Plan) -> None:
        """Write down what the run was told to do."""
        dataset: Any = plan.loader.dataset
        total, warmup = plan.settings.schedule(plan.num_files)
        self.trace.configuration = {
            **{name: getattr(plan.settings, own) for name, own in SETTINGS.items()},
            "max_len": plan.settings.max_len,
            "ttt_alignment": Alignment(plan.settings.ttt_alignment).value,
            "samples": [file.name for file in dataset.files],
            "total_steps": total,
            "warmup_steps": warmup,
        }

    def started(self, objective: nn.Module, optimizer: Any) -> None:
        group, parameters = optimizer.param_groups[0], _named(objective)
        said = {name: group[name] for name in ("eps", "weight_decay")}
        self.trace.configuration |= {**said, "betas": list(group["betas"]), "lr": optimizer.defaults["lr"]}
        trained = {name: value for name, value in parameters.items() if value.requires_grad}
        self.trace.trained = tuple(trained)
        self.trace.frozen = tuple(name for name in parameters if name not in trained)
        self.trace.keep("init", parameters)
        self.auditor = StepAuditor(rule_of(self.case), trained, optimizer)
        self.trace.audits = self.auditor.audits
        if self.reseed:
            set_seed(self.seed)
        self.trace.configuration["seed"] = torch.initial_seed()

    def batch(self, micro_batch: int, batch: Batch) -> None:
        self.rows = batch["loss_mask"].bool()
        if self.first_step:
            named = {"hidden_states" if name == "features" else name: value for name, value in batch.items()}
            self.trace.keep(f"mb{micro_batch}.batch", named)

    def outcome(self, micro_batch: int, outcome: Any) -> None:
        target_p = outcome.target.probabilities
        with torch.no_grad():
            self.ties = near_ties(outcome.steps[-1].logits, target_p, self.rows, self.margin)
        if self.first_step:
            name, losses = f"mb{micro_batch}", list(outcome.step_losses)
            keep_steps(self.trace, name, target_p, outcome.loss, outcome.steps, losses)

    def gradients(self, micro_batch: int, objective: nn.Module) -> None:
        self.auditor.entered()
        if self.first_step:
            self.trace.keep(f"mb{micro_batch}.grad", gradients_of(_named(objective)))

    def stepped(self, record: StepRecord, objective: nn.Module) -> None:
        said = {one.name: getattr(record, one.name) for one in fields(Point) if hasattr(record, one.name)}
        logged = {name: value for name, value in record.logged.items() if name in LOGGED}
        self.trace.curve.append(Point(**{**said, "logged": logged, "ties": self.ties}))
        if not record.stepped:
            return
        self.auditor.left()
        if self.first_step:
            norm = float("nan") if record.grad_norm is None else record.grad_norm
            self.trace.keep(f"mb{record.micro_batch}", {"grad_norm": torch.tensor([norm])})
            self.trace.keep("after", _named(objective))
            self.first_step = False

    def printed(self, line: str) -> None:
        self.trace.prints.append(line)

    def finished(self, objective: nn.Module) -> None:
        self.auditor.close()
        self.trace.keep("final", _named(objective))


def _named(objective: Any) -> Mapping[str, Tensor]:
    """The draft's parameters by Speculators' names."""
    return dict(objective.draft.named_parameters())
