"""Run the reference over a case: passes, micro-batches, optimizer steps; gives a trace."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from parity.environment import describe, deterministic
from parity.errors import InputError
from parity.files import read_tensors
from parity.prototypes.case import Case
from parity.prototypes.recorded import configuration, path_norms, samples_per_pass
from parity.prototypes.reference.data import load_sample, make_batch
from parity.prototypes.reference.setup import Setup, prepare
from parity.prototypes.reference.steps import Unrolled
from parity.prototypes.ties import near_ties
from parity.step import AdamW, State, linear_schedule
from parity.trace import Point, Trace

UPDATE = AdamW(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)


def trace_reference(case: Case, dtype: torch.dtype = torch.float32, optimizer_steps: int | None = None) -> Trace:
    """The reference's trace of a case; ``optimizer_steps`` ends it early."""
    with deterministic():
        setup = prepare(case, dtype)
        run = Run(setup)
        for _ in run.optimizer_steps(optimizer_steps):
            pass
        return run.finish()


def float64_oracle(case: Case) -> Callable[[], Trace]:
    """Gives the first optimizer step in float64, computed when it is first asked for; in bfloat16 the whole run."""
    steps = 1 if case.dtype == "fp32" else None
    return functools.cache(lambda: trace_reference(case, torch.float64, optimizer_steps=steps))


class Run:
    """One run of the reference and the trace it fills; not ``observed``, it does only what the prototype does."""

    def __init__(self, setup: Setup, observed: bool = True) -> None:
        self.setup, self.case, self.observed = setup, setup.case, observed
        self.states: dict[str, State] = {name: {} for name in setup.masters}
        self.steps = 0
        self.trace = Trace("reference", self.case.name, self.case.dtype, configuration=configuration(self.case))
        self.trace.trained, self.trace.frozen = tuple(setup.masters), tuple(setup.frozen)
        self.micro_batch = 0
        self._keep("init", setup.masters)
        self._print(f"training on {len(self.case.meta.samples_files)} examples total")

    def optimizer_steps(self, limit: int | None = None) -> Iterator[int]:
        """Run, yielding the number of optimizer steps done after each."""
        visits = Visits(self.case)
        for epoch in range(self.case.epoch + 1):
            start = len(self.trace.curve)
            batches = list(visits.batches_of_pass(epoch))
            for index, batch in enumerate(batches):
                stepped = (index + 1) % self.case.accumulation == 0 or index == len(batches) - 1
                self._micro_batch(epoch, batch, stepped)
                if stepped:
                    yield self.steps
                    if self.steps == limit:
                        return
            self._print_pass(epoch, self.trace.curve[start:])

    def finish(self) -> Trace:
        """The trace, with the final parameters."""
        self._keep("final", {**self.setup.masters, **self.setup.frozen})
        self.trace.environment = describe()
        return self.trace

    def _micro_batch(self, epoch: int, batch: dict[str, Tensor], stepped: bool) -> None:
        """Gradients of earlier micro-batches are gone: the prototypes zero them at the top of each."""
        weights = self.setup.weights()
        out = self.setup.forward(weights, batch)
        first_step = self.observed and self.steps == 0
        if first_step:
            paths = path_norms([step.loss for step in out.steps], [step.hidden_in for step in out.steps])
            self._keep(f"mb{self.micro_batch}.path", paths)
        for loss in out.backward:
            (loss / self.case.accumulation).backward()
        gradients = _gradients(weights, self.setup.masters)
        if first_step:
            self._keep_first_step(batch, out, gradients)
        clipped, norm = self.setup.clip(gradients)
        lr_used = self._lr()
        if stepped:
            self._update(clipped, lr_used)
        self.trace.curve.append(self._point(epoch, batch, out, norm, lr_used, stepped))
        if first_step:
            self.trace.tensors[f"mb{self.micro_batch}.grad_norm"] = torch.tensor([norm])
            if stepped:
                self._keep("after", {**self.setup.masters, **self.setup.frozen})
        self.micro_batch += 1

    @torch.no_grad()
    def _update(self, gradients: dict[str, Tensor], lr: float) -> None:
        """One AdamW step; a parameter without a gradient stays as it is."""
        self.steps += 1
        for name, gradient in gradients.items():
            weight, self.states[name] = UPDATE(self.setup.masters[name], gradient, self.states[name], lr, self.steps)
            self.setup.masters[name].copy_(weight)

    def _lr(self) -> float:
        total, warmup = self.case.meta.total_steps, self.case.meta.warm_steps
        return self.case.lr * linear_schedule(self.steps, total, warmup)

    def _keep_first_step(self, batch: dict[str, Tensor], out: Unrolled, gradients: dict[str, Tensor]) -> None:
        name = f"mb{self.micro_batch}"
        self._keep(f"{name}.batch", batch)
        self._keep(name, {"target_p": out.target_p, "loss": out.loss.reshape(1)})
        self._keep(f"{name}.step0", {"hidden_in": out.steps[0].hidden_in})
        for number, step in enumerate(out.steps):
            quantities = {"hidden": step.hidden, "logits": step.logits, "loss": step.loss.reshape(1)}
            self._keep(f"{name}.step{number}", quantities)
        self._keep(f"{name}.grad", gradients)

    def _point(
        self, epoch: int, batch: dict[str, Tensor], out: Unrolled, norm: float, lr_used: float, stepped: bool
    ) -> Point:
        correct, top = hits(out.steps[-1].logits.detach(), out.target_p, batch["loss_mask"].bool())
        return Point(
            epoch=epoch,
            loss=out.loss.item(),
            step_losses=tuple(step.loss.item() for step in out.steps),
            grad_norm=norm,
            lr_used=lr_used,
            lr_after=self._lr(),
            correct=correct,
            rows=int(batch["loss_mask"].sum()),
            top=top,
            ties=near_ties(out.steps[-1].logits.detach(), out.target_p, batch["loss_mask"].bool()),
            stepped=stepped,
            logged=out.logged if bool(batch["loss_mask"].any()) else {},
        )

    def _print_pass(self, epoch: int, points: Sequence[Point]) -> None:
        loss = sum(point.loss for point in points) / len(points)
        correct, rows = sum(point.correct for point in points), sum(point.rows for point in points)
        self._print(f"Epoch [{epoch + 1}/{self.case.epoch}], Loss: {loss:.4f}")
        self._print(f"Train Accuracy: {100 * correct / rows:.2f}%")

    def _print(self, line: str) -> None:
        self.trace.prints.append(line)

    def _keep(self, prefix: str, values: dict[str, Tensor]) -> None:
        self.trace.tensors.update({f"{prefix}.{name}": value.detach().clone() for name, value in values.items()})


class Visits:
    """The samples in the order the recorded run loaded them, with its noise."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.files = [case.tmpdir / name for name in case.meta.samples_files]
        stored = read_tensors(case.uniforms) if case.uniforms else {}
        self.uniforms = [stored[name] for name in sorted(stored)]

    def batches_of_pass(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """The whole batches of one pass."""
        per_pass = samples_per_pass(self.case)
        for start in range(epoch * per_pass, (epoch + 1) * per_pass, self.case.bs):
            visits = range(start, start + self.case.bs)
            yield make_batch([self._sample(visit) for visit in visits])

    def _sample(self, visit: int) -> dict[str, Tensor]:
        return load_sample(self.files[self.case.order[visit]], self._uniforms(visit))

    def _uniforms(self, visit: int) -> Tensor | None:
        if self.case.uniforms is None:
            return None
        if visit >= len(self.uniforms):
            raise InputError(self.case.uniforms, "noise", f"{len(self.uniforms)} draws", "one for every sample visited")
        return self.uniforms[visit]


def hits(logits: Tensor, target_p: Tensor, rows: Tensor) -> tuple[int, tuple[int, ...]]:
    """Rows whose most likely target is the draft's first choice; and among its first 1, 2, 3."""
    logits, wanted = logits[rows], target_p[rows].argmax(-1)
    choices = logits.topk(min(3, logits.shape[-1]), dim=-1).indices == wanted[:, None]
    return int((logits.argmax(-1) == wanted).sum()), tuple(choices.sum(0).cumsum(0).tolist())


def _gradients(weights: dict[str, Tensor], masters: dict[str, Tensor]) -> dict[str, Tensor]:
    """In the masters' dtype; every trained parameter has one."""
    grads = {name: weights[name].grad for name in masters}
    return {name: grad.to(masters[name].dtype) for name, grad in grads.items() if grad is not None}
