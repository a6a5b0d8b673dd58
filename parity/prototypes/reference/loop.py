"""Run the reference over a case: passes, micro-batches, optimizer steps; gives a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from parity.allowed import DTYPES, Disturbance, moved, moved_by_one
from parity.draws import Doubled, Turn
from parity.environment import describe, deterministic
from parity.errors import InputError
from parity.files import read_object, read_tensors
from parity.observe import path_norms
from parity.prototypes.case import TO_NATIVE, RecordedCase
from parity.prototypes.recorded import configuration, samples_per_pass, start_of
from parity.prototypes.reference.data import batches_of
from parity.prototypes.reference.drafts import Unrolled, eagle3, hass
from parity.step import AdamW, Clip, Rule, State, global_norm, linear_schedule
from parity.trace import Point, Trace

CLIP = {"eagle3": Clip("norm", 1.0), "hass": Clip("value", 0.5)}
HEAD = "init.lm_head.weight"
"""What an initial file may leave out of what Eagle3 trains: the verifier's rows that the draft can say."""

TARGETS = {**DTYPES, "bf16ds": torch.float32}
"""What a case's targets are computed in; under DeepSpeed the verifier's head and states stay in float32."""

PLACES = 3
"""First choices of the draft that hits are counted among: 1, 2, 3."""


@dataclass
class Setup:
    """What the reference computes with, in ``dtype``; ``masters`` are float32 or wider.

    With ``autocast`` the weights stay as they are.
    """

    case: RecordedCase
    dtype: torch.dtype
    config: dict[str, Any]
    masters: dict[str, Tensor]
    head: Tensor
    t2d: Tensor
    frozen: dict[str, Tensor]
    autocast: bool = False

    def weights(self) -> dict[str, Tensor]:
        """The parameters as leaves in the computing dtype, ready for a backward."""
        leaves = {name: value.detach().to(self.dtype).requires_grad_() for name, value in self.masters.items()}
        return {**leaves, **self.frozen}

    def forward(self, weights: Mapping[str, Tensor], batch: Mapping[str, Tensor], **options: Any) -> Unrolled:
        """The algorithm's forward; ``options`` are ``own_position`` and ``tap``. In autocast where the case was."""
        wide, case = torch.promote_types(self.dtype, torch.float32), self.case
        batch = {name: value.to(wide) if value.is_floating_point() else value for name, value in batch.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            if case.algorithm == "hass":
                return hass(weights, self.config, batch, self.head, case.ttt_steps, case.topk, **options)
            return eagle3(weights, self.config, batch, self.head, self.t2d, case.ttt_steps, **options)


def prepare(case: RecordedCase, dtype: torch.dtype = torch.float32) -> Setup:
    """Read weights, config and vocabulary map of a case.

    ``dtype`` is that of the computation. For a case under autocast bfloat16 means: float32 weights, autocast on.

    Raises:
        InputError: a file that cannot be read, or without the verifier's head or embedding.
    """
    native, stored = TO_NATIVE[case.algorithm], read_tensors(case.initial)
    autocast = case.dtype == "bf16" and dtype == torch.bfloat16
    dtype = torch.float32 if autocast else dtype
    wide = torch.promote_types(dtype, torch.float32)
    for name in ("verifier.lm_head.weight", "verifier.embed_tokens.weight"):
        if name not in stored:
            raise InputError(case.initial, name, "missing", "a tensor")
    head = stored["verifier.lm_head.weight"]
    t2d = stored["t2d"].bool() if "t2d" in stored else torch.ones(0, dtype=torch.bool)
    if case.algorithm == "eagle3" and HEAD not in stored:
        stored[HEAD] = head[t2d]
    embedding = stored.get("init.embed_tokens.weight", stored["verifier.embed_tokens.weight"])
    return Setup(
        case=case,
        dtype=dtype,
        config=read_object(case.configpath),
        masters={native(name): value.to(wide) for name, value in start_of(case, stored).items()},
        head=head.to(wide),
        t2d=t2d,
        frozen={"embed_tokens.weight": embedding.to(dtype)},
        autocast=autocast,
    )


def trace_reference(
    case: RecordedCase,
    optimizer_steps: int | None = None,
    draw: int = 0,
    margin: float = 0.0,
    disturbance: Disturbance | None = None,
) -> Trace:
    """The reference's trace of a case, in the case's own precision.

    Args:
        optimizer_steps: ends it early.
        draw: a number other than 0 moves weights and batches by one unit in the last place, at random.
        margin: within which near ties are counted, see :func:`near_ties`.
        disturbance: of every step.
    """
    with deterministic():
        run = ReferenceRun(_moved(prepare(case, DTYPES[case.dtype]), draw), True, draw, margin, disturbance)
        for _ in run.optimizer_steps(optimizer_steps):
            pass
        run.trace.keep("final", run.parameters)
        run.trace.keep("last", {"logits": run.logits})
        run.trace.environment = describe()
    return run.trace


def _moved(setup: Setup, draw: int) -> Setup:
    """Every weight, one unit of the dtype of the computation up or down."""
    if not draw:
        return setup
    dtype, generator = DTYPES[setup.case.dtype], torch.Generator().manual_seed(draw)
    masters, frozen = (
        {name: moved_by_one(value, dtype, generator) for name, value in weights.items()}
        for weights in (setup.masters, setup.frozen)
    )
    head = moved_by_one(setup.head, TARGETS[setup.case.dtype], generator)
    return replace(setup, masters=masters, frozen=frozen, head=head)


def rule_of(case: RecordedCase) -> Rule:
    """What an optimizer step of the case is to do: the prototypes' AdamW, schedule and clipping."""
    config = configuration(case)
    update = AdamW(tuple(config["betas"]), config["eps"], config["weight_decay"])
    steps = case.meta.total_steps, case.meta.warm_steps
    return Rule(update, CLIP[case.algorithm], lambda n: case.lr * linear_schedule(n, *steps))


class ReferenceRun:
    """One run of the reference and the trace it fills; not ``observed``, it does only what the prototype does."""

    def __init__(
        self,
        setup: Setup,
        observed: bool = True,
        draw: int = 0,
        margin: float = 0.0,
        disturbance: Disturbance | None = None,
    ) -> None:
        self.setup, self.case, self.observed, self.draw, self.margin = setup, setup.case, observed, draw, margin
        self.logits, self.disturbance = torch.zeros(0), disturbance
        self.rule: Any = rule_of(setup.case)
        self.states: dict[str, State] = {name: {} for name in setup.masters}
        self.steps = 0
        self.trace = Trace("reference", self.case.name, self.case.dtype, configuration=configuration(self.case))
        self.trace.trained, self.trace.frozen = tuple(setup.masters), tuple(setup.frozen)
        self.trace.keep("init", setup.masters)
        self.trace.prints.append(f"training on {len(self.case.meta.samples_files)} examples total")

    @property
    def parameters(self) -> dict[str, Tensor]:
        """As they are now, frozen ones too."""
        return {**self.setup.masters, **self.setup.frozen}

    def optimizer_steps(self, limit: int | None = None) -> Iterator[int]:
        """ReferenceRun, yielding the number of optimizer steps done after each."""
        run, per_pass = batches_of(self.case), samples_per_pass(self.case) // self.case.bs
        for epoch in range(self.case.epoch + 1):
            start, batches = len(self.trace.curve), list(islice(run, per_pass))
            for number, batch in enumerate(batches, 1):
                stepped = number % self.case.accumulation == 0 or number == len(batches)
                self._micro_batch(epoch, batch, stepped)
                if stepped:
                    yield self.steps
                    if self.steps == limit:
                        return
            self._print_pass(epoch, self.trace.curve[start:])

    def _micro_batch(self, epoch: int, batch: dict[str, Tensor], stepped: bool) -> None:
        """Gradients of earlier micro-batches are gone: the prototypes zero them at the top of each."""
        weights, masters = self.setup.weights(), self.setup.masters
        target = moved(batch["target"], self.draw, TARGETS[self.case.dtype], len(self.trace.curve))
        batch = {**moved(batch, self.draw, DTYPES[self.case.dtype], len(self.trace.curve)), "target": target}
        out = self.setup.forward(weights, batch)
        name, first_step = f"mb{len(self.trace.curve)}", self.observed and self.steps == 0
        if first_step:
            self.trace.keep(f"{name}.batch", batch)
            keep_steps(self.trace, name, out.target_p, out.loss, out.steps, [step.loss for step in out.steps])
        for loss in out.backward:
            (loss / self.case.accumulation).backward()
        grads = {each: weights[each].grad for each in masters}
        gradients = {each: grad.to(masters[each].dtype) for each, grad in grads.items() if grad is not None}
        norm, lr_used = global_norm(gradients.values()), self.rule.rate(self.steps)
        if stepped:
            self._update(self.rule.clip(gradients), lr_used)
        self.trace.curve.append(self._point(epoch, batch, out, norm, lr_used, stepped))
        if first_step:
            self.trace.keep(f"{name}.grad", gradients)
            self.trace.keep(name, {"grad_norm": torch.tensor([norm])})
            self.trace.keep("after", self.parameters if stepped else {})

    @torch.no_grad()
    def _update(self, gradients: dict[str, Tensor], lr: float) -> None:
        """One AdamW step; a parameter without a gradient stays as it is."""
        self.steps += 1
        if isinstance(self.disturbance, Turn):
            gradients = {name: self.disturbance.turned(name, value) for name, value in gradients.items()}
        lr *= 2 if isinstance(self.disturbance, Doubled) else 1
        for name, gradient in gradients.items():
            master = self.setup.masters[name]
            weight, self.states[name] = self.rule.update(master, gradient, self.states[name], lr, self.steps)
            master.copy_(weight)

    def _point(
        self, epoch: int, batch: dict[str, Tensor], out: Unrolled, norm: float, lr_used: float, stepped: bool
    ) -> Point:
        rows = batch["loss_mask"].bool()
        scored = out.steps[-1].logits.detach(), out.target_p, rows
        top, self.logits = hits(*scored), scored[0][rows]
        return Point(
            epoch=epoch,
            loss=out.loss.item(),
            step_losses=tuple(step.loss.item() for step in out.steps),
            grad_norm=norm,
            lr_used=lr_used,
            lr_after=self.rule.rate(self.steps),
            correct=top[0],
            rows=int(batch["loss_mask"].sum()),
            top=top,
            ties=near_ties(*scored, self.margin),
            stepped=stepped,
            logged=out.logged if bool(rows.any()) else {},
        )

    def _print_pass(self, epoch: int, points: Sequence[Point]) -> None:
        loss = sum(point.loss for point in points) / len(points)
        correct, rows = sum(point.correct for point in points), sum(point.rows for point in points)
        self.trace.prints.append(f"Epoch [{epoch + 1}/{self.case.epoch}], Loss: {loss:.4f}")
        self.trace.prints.append(f"Train Accuracy: {100 * correct / rows:.2f}%")


def hits(logits: Tensor, target_p: Tensor, rows: Tensor) -> tuple[int, ...]:
    """Rows whose most likely target is among the draft's first 1, 2, 3 choices."""
    logits, wanted = logits[rows], target_p[rows].argmax(-1)
    choices = logits.topk(min(PLACES, logits.shape[-1]), dim=-1).indices == wanted[:, None]
    return tuple(choices.sum(0).cumsum(0).tolist())


@torch.no_grad()
def near_ties(logits: Tensor, target_p: Tensor, rows: Tensor, margin: float) -> tuple[int, ...]:
    """For places 1, 2, 3 the rows in the loss whose target's logit lies so close to that place's other candidate.

    Args:
        margin: of the root mean square of the logits, how far rounding may move one.
        logits, target_p: [B, T, D], the draft's at the last step and the verifier's distribution.
        rows: bool [B, T], the positions in the loss.
    """
    chosen, wanted = logits[rows].double(), target_p[rows].argmax(-1, keepdim=True)
    own = chosen.gather(1, wanted)
    others = chosen.scatter(1, wanted, -torch.inf).topk(min(PLACES, chosen.shape[-1]), dim=-1).values
    apart = 2**0.5 * margin * float(chosen.square().mean().sqrt()) if chosen.numel() else 0.0
    return tuple(((own - others).abs() <= apart).sum(0).tolist())


def keep_steps(
    trace: Trace, name: str, target_p: Tensor, loss: Tensor, steps: Sequence[Any], losses: Sequence[Tensor]
) -> None:
    """Put what a micro-batch's forward gave into a trace, and how its losses depend on its states.

    Args:
        name: ``mb{j}``.
        steps: each with ``hidden_in``, ``hidden`` and ``logits``; the graph that leads to ``losses`` is still there.
    """
    trace.keep(name, {"target_p": target_p, "loss": loss.reshape(1), "step0.hidden_in": steps[0].hidden_in})
    for number, (step, own) in enumerate(zip(steps, losses)):
        quantities = {"hidden": step.hidden, "logits": step.logits, "loss": own.reshape(1)}
        trace.keep(f"{name}.step{number}", quantities)
    trace.keep(f"{name}.path", path_norms(losses, [step.hidden_in for step in steps]))
