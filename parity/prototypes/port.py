"""Run a port on a case through its own training loop and write down what it does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import set_seed
from speculators import SpeculatorModel
from torch import Tensor, nn

from parity.environment import describe, deterministic, quietly
from parity.errors import InputError
from parity.files import read_tensors
from parity.prototypes.algorithms import ALGORITHMS
from parity.prototypes.case import TO_NATIVE, Case
from parity.prototypes.recorded import LOGGED, ReplayDraw, ReplaySampler, configuration, path_norms, samples_per_pass
from parity.prototypes.reference.setup import CLIP
from parity.prototypes.ties import near_ties
from parity.step import AdamW, Rule, StepAuditor, linear_schedule
from parity.trace import Point, Trace
from ports.training.alignment import Alignment
from ports.training.data.batches import Batch
from ports.training.loop import Loop, Plan
from ports.training.observer import Observer, StepRecord
from ports.training.runs import finish
from ports.training.settings import TrainingSettings

FROM_VERIFIER = ("embed_tokens.weight", "lm_head.weight")
"""Initial weights that a recording may leave out, since the draft takes them from the verifier."""

SHORTEST = 2
"""Optimizer steps of a run whose first is looked at: in a warm-up that one has rate 0, and alone it is refused."""

PRECISION = {"fp32": "no", "bf16": "bf16", "bf16ds": "bf16"}


@dataclass
class PortRun:
    """A finished run: its trace, the trained draft and where its checkpoints lie."""

    trace: Trace
    draft: SpeculatorModel
    checkpoints: Path


def settings_for(case: Case, cpdir: Path, **changes: Any) -> TrainingSettings:
    """The port's settings that mean what the case's recorded command line means."""
    values: dict[str, Any] = {
        "basepath": str(case.verifier),
        "configpath": str(case.configpath),
        "tmpdir": case.tmpdir,
        "cpdir": cpdir,
        "lr": case.lr,
        "bs": case.bs,
        "gradient_accumulation_steps": case.accumulation,
        "epoch": case.epoch,
        "forward_num_total": case.ttt_steps,
        "topk": case.topk,
        "noise": case.noise,
        "shuffle": case.shuffle,
        "num_workers": 0,
        "mixed_precision": PRECISION[case.dtype],
        "progress": False,
    }
    algorithm = ALGORITHMS[case.algorithm]
    if algorithm.owns_vocabulary:
        values |= {"t2d": case.fixture / "t2d.npy", "d2t": case.fixture / "d2t.npy"}
    return algorithm.settings(**{**values, **changes})


def dataset_for(case: Case, config: Any, **changes: Any) -> Any:
    """The port's data set for a draft of ``config``, in the case's order and without noise."""
    settings = settings_for(case, Path("nowhere"), noise=False, **changes)
    return ALGORITHMS[case.algorithm].train.build_dataset(settings, config)


def run_port(
    case: Case, cpdir: Path, seed: int = 0, live: bool = False, observers: tuple[Observer, ...] = (), **changes: Any
) -> PortRun:
    """Train the port on ``case`` and trace it.

    Args:
        case: what to run.
        cpdir: where its checkpoints go.
        seed: set before the model is built, and again at the start of the loop when ``live``.
        live: draw order and noise afresh from ``seed`` instead of replaying the recorded ones.
        observers: further observers, called after the tracer.
        changes: settings that differ from the case's.
    """
    with deterministic(seed):
        tracer = Tracer(case, seed, reseed=live)
        loop = start_port(case, cpdir, live, Together((tracer, *observers)), **changes)
        tracer.describe(loop.plan)
        with quietly():  # the trace keeps what the loop prints
            finish(loop)
        tracer.trace.environment = describe(seed)
    return PortRun(tracer.trace, loop.plan.objective.draft, cpdir)


def start_port(case: Case, cpdir: Path, live: bool = False, observer: Observer | None = None, **changes: Any) -> Loop:
    """The port's training loop on ``case``, from the recorded weights, ready to go."""
    reset_accelerate()
    settings = settings_for(case, cpdir, **changes)
    train = ALGORITHMS[case.algorithm].train
    draft = train.build(settings)
    load_initial(draft, case)
    draw = ReplayDraw(case.uniforms) if case.uniforms and not live else torch.rand_like
    dataset = train.build_dataset(settings, draft.config, draw)
    sampler = None if live or not case.shuffle else ReplaySampler(case.order, samples_per_pass(case))
    loop: Loop = train.start(settings, draft, dataset, sampler, observer)
    return loop


def trace_port(case: Case, **changes: Any) -> Trace:
    """Like :func:`run_port`, with checkpoints in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return run_port(case, Path(folder), **changes).trace


def load_initial(draft: SpeculatorModel, case: Case) -> None:
    """Give the draft the weights the recorded run started from."""
    native = TO_NATIVE[case.algorithm]
    stored = read_tensors(case.initial)
    weights = {native(name[5:]): value for name, value in stored.items() if name.startswith("init.")}
    weights.pop("embed_tokens.weight", None)  # the verifier's, which the draft already has
    if case.dtype == "bf16ds":  # DeepSpeed rounds the weights before it makes its float32 masters
        weights = {name: value.to(torch.bfloat16) for name, value in weights.items()}
    own = draft.state_dict()
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            expected = tuple(own[name].shape) if name in own else "no such parameter"
            raise InputError(case.initial, f"init.{name}", tuple(value.shape), expected)
    for name, parameter in draft.named_parameters():
        if parameter.requires_grad and name not in {*weights, *FROM_VERIFIER}:
            raise InputError(case.initial, f"init.{name}", "missing", f"a tensor of shape {tuple(parameter.shape)}")
    draft.load_state_dict(weights, strict=False)


def reset_accelerate() -> None:
    """Forget the last run's accelerator, which is global to the process."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Together(Observer):
    """Several observers as one."""

    def __init__(self, observers: tuple[Observer, ...]) -> None:
        self.observers = observers

    def __getattribute__(self, name: str) -> Any:
        if name not in EVENTS:
            return super().__getattribute__(name)
        return self._call(name)

    def _call(self, name: str) -> Callable[..., None]:
        def call(*args: Any) -> None:
            for observer in self.observers:
                getattr(observer, name)(*args)

        return call


EVENTS = frozenset(name for name in vars(Observer) if not name.startswith("_"))


class Tracer(Observer):
    """Writes the first optimizer step's tensors and every micro-batch's scalars into a trace."""

    def __init__(self, case: Case, seed: int, reseed: bool) -> None:
        self.seed, self.reseed = seed, reseed
        self.trace = Trace("port", case.name, case.dtype)
        self.first_step, self.case = True, case
        self.first_step = True
        self.rows = torch.zeros(0, dtype=torch.bool)
        self.ties: tuple[int, ...] = ()

    def describe(self, plan: Plan) -> None:
        """Write down what the run was told to do."""
        dataset: Any = plan.loader.dataset
        total, warmup = plan.settings.schedule(plan.num_files)
        self.trace.configuration = {
            **_declared(plan.settings),
            "samples": [file.name for file in dataset.files],
            "total_steps": total,
            "warmup_steps": warmup,
            "seed": self.seed,
        }

    def started(self, objective: nn.Module, optimizer: Any) -> None:
        group = optimizer.param_groups[0]
        self.trace.configuration.update(
            betas=list(group["betas"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            lr=optimizer.defaults["lr"],
        )
        parameters = _named(objective)
        self.trace.trained = tuple(name for name, value in parameters.items() if value.requires_grad)
        self.trace.frozen = tuple(name for name, value in parameters.items() if not value.requires_grad)
        self._keep("init", parameters)
        trained = {name: value for name, value in parameters.items() if value.requires_grad}
        self.auditor = StepAuditor(rule_of(self.case), trained, optimizer)
        self.trace.audits = self.auditor.audits
        if self.reseed:
            set_seed(self.seed)

    def batch(self, micro_batch: int, batch: Batch) -> None:
        self.rows = batch["loss_mask"].bool()
        if self.first_step:
            named = {"hidden_states" if name == "features" else name: value for name, value in batch.items()}
            self._keep(f"mb{micro_batch}.batch", named)

    def outcome(self, micro_batch: int, outcome: Any) -> None:
        with torch.no_grad():
            self.ties = near_ties(outcome.steps[-1].logits, outcome.target.probabilities, self.rows)
        if not self.first_step:
            return
        self._keep(f"mb{micro_batch}", {"target_p": outcome.target.probabilities, "loss": outcome.loss.reshape(1)})
        self._keep(f"mb{micro_batch}.step0", {"hidden_in": outcome.steps[0].hidden_in})
        for number, (step, loss) in enumerate(zip(outcome.steps, outcome.step_losses)):
            quantities = {"hidden": step.hidden, "logits": step.logits, "loss": loss.reshape(1)}
            self._keep(f"mb{micro_batch}.step{number}", quantities)
        self._keep(f"mb{micro_batch}.path", path_norms(outcome.step_losses, [step.hidden_in for step in outcome.steps]))

    def gradients(self, micro_batch: int, objective: nn.Module) -> None:
        self.auditor.entered()
        if self.first_step:
            grads = {name: value.grad for name, value in _named(objective).items() if value.grad is not None}
            self._keep(f"mb{micro_batch}.grad", grads)

    def stepped(self, record: StepRecord, objective: nn.Module) -> None:
        self.trace.curve.append(_point(record))
        if record.stepped:
            self.auditor.left()
        if record.stepped and self.first_step:
            norm = torch.tensor([float("nan") if record.grad_norm is None else record.grad_norm])
            self._keep(f"mb{record.micro_batch}", {"grad_norm": norm})
            self._keep("after", _named(objective))
            self.first_step = False

    def printed(self, line: str) -> None:
        self.trace.prints.append(line)

    def finished(self, objective: nn.Module) -> None:
        self.auditor.close()
        self._keep("final", _named(objective))

    def _keep(self, prefix: str, values: dict[str, Tensor]) -> None:
        self.trace.tensors.update({f"{prefix}.{name}": value.detach().clone() for name, value in values.items()})


def rule_of(case: Case) -> Rule:
    """What an optimizer step of the case is to do: the prototypes' AdamW, schedule and clipping."""
    config = configuration(case)
    update = AdamW(tuple(config["betas"]), config["eps"], config["weight_decay"])
    return Rule(
        update,
        CLIP[case.algorithm],
        lambda n: case.lr * linear_schedule(n, config["total_steps"], config["warmup_steps"]),
    )


def _named(objective: Any) -> dict[str, Tensor]:
    """The draft's parameters by Speculators' names."""
    return dict(objective.draft.named_parameters())


def _point(record: StepRecord) -> Point:
    return Point(
        epoch=record.epoch,
        loss=record.loss,
        step_losses=record.step_losses,
        grad_norm=record.grad_norm,
        lr_used=record.lr_used,
        lr_after=record.lr_after,
        correct=record.correct,
        rows=record.rows,
        top=record.top,
        stepped=record.stepped,
        logged={name: value for name, value in record.logged.items() if name in LOGGED},
    )


def _declared(settings: TrainingSettings) -> dict[str, Any]:
    return {
        "lr": settings.lr,
        "bs": settings.bs,
        "accumulation": settings.gradient_accumulation_steps,
        "epoch": settings.epoch,
        "ttt_steps": settings.forward_num_total,
        "noise": settings.noise,
        "shuffle": settings.shuffle,
        "max_len": settings.max_len,
        "ttt_alignment": Alignment(settings.ttt_alignment).value,
    }
