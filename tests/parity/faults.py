"""Faults to plant in the port, each with the checks that must name it. Nothing else may fail; the rest is blocked."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from speculators.convert.eagle.eagle3_converter import Eagle3Converter
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

import parity.runs.port
import ports.eagle3.first_layer
import ports.eagle3.model
import ports.eagle3.objective
import ports.eagle3.train
import ports.hass.objective
import ports.hass.train
import ports.training.attention.flash
import ports.training.attention.once
import ports.training.attention.recompute
import ports.training.attention.shared_half
import ports.training.checkpoint.atomic
import ports.training.checkpoint.choose
import ports.training.checkpoint.fingerprint
import ports.training.checkpoint.generators
import ports.training.checkpoint.keeper
import ports.training.checkpoint.manifest
import ports.training.checkpoint.resume
import ports.training.data.prepared
import ports.training.data.records
import ports.training.data.samples
import ports.training.frozen_ends
import ports.training.loop
import ports.training.loss.fused_loss
import ports.training.loss.objective
import ports.training.loss.scoring
import ports.training.loss.ttt_objective
import ports.training.metrics
import ports.training.optimizer
import ports.training.settings
from parity.environment import deterministic
from parity.errors import InputError
from ports.hass.model import HassDraftModel
from ports.training.attention.dense import ttt_cache
from ports.training.attention.documents import documents_of
from ports.training.attention.trained_rows import TrainedRows
from ports.training.frozen_ends import FrozenEnds
from ports.training.loss.steps import Step, next_hidden

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Fault:
    """``plant`` breaks the port; ``named_by`` are the checks that fail, all of them and no other."""

    name: str
    plant: Plant
    named_by: frozenset[str]
    case: str = "eagle3_fp32_k3"


def wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace ``owner.name`` by ``make(the old one)``."""
    patch.setattr(owner, name, make(getattr(owner, name)))


def swap_attention(name: str, other: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        functions = ALL_ATTENTION_FUNCTIONS._global_mapping
        patch.setitem(functions, name, functions[other])
        AttentionInterface.register(name, functions[other])

    return plant


def change_config(change: Callable[[Any], None]) -> Plant:
    """Alter the draft's config between reading and building."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def make(old: Any) -> Any:
            def build(config: Any, *args: Any) -> Any:
                change(config)
                return old(config, *args)

            return build

        wrap(patch, ports.eagle3.train, "build_draft", make)

    return plant


def change_draft(change: Callable[[Any], None]) -> Plant:
    """Alter the draft after building."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def make(old: Any) -> Any:
            def build(*args: Any) -> Any:
                draft = old(*args)
                change(draft)
                return draft

            return build

        wrap(patch, ports.eagle3.train, "build_draft", make)

    return plant


def change_steps(change: Callable[[list[Any]], None]) -> Plant:
    """Alter the steps of an unroll after the fact."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def make(old: Any) -> Any:
            def unroll(*args: Any) -> Any:
                steps = old(*args)
                change(steps)
                return steps

            return unroll

        wrap(patch, ports.eagle3.objective, "unroll", make)

    return plant


def change_file(change: Callable[[dict[str, Tensor]], None]) -> Plant:
    """Alter the tensors of every checkpoint after it was written."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def make(old: Any) -> Any:
            def save(draft: Any, folder: Path, *args: Any) -> None:
                old(draft, folder, *args)
                tensors = load_file(folder / "model.safetensors")
                change(tensors)
                save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")

            return save

        wrap(patch, ports.training.checkpoint.keeper, "write_draft", make)

    return plant


def shift_mask(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, ports.training.data.samples, "_last_off", lambda old: lambda mask: old(torch.roll(mask, -1)))


def norm_target_twice(patch: pytest.MonkeyPatch) -> None:
    def make(old: Any) -> Any:
        def verifier(hidden: Tensor, *args: Any) -> Any:
            return old(hidden / hidden.pow(2).mean(-1, keepdim=True).add(1e-5).sqrt(), *args)

        return verifier

    wrap(patch, ports.eagle3.objective, "Verifier", make)


def detach_history(patch: pytest.MonkeyPatch) -> None:
    """The state that goes on to the next step loses its graph."""
    wrap(patch, ports.eagle3.model, "next_hidden", lambda old: lambda *args: old(*args).detach())


def detach_norm(draft: Any) -> None:
    """The final norm's weight is cut off from the loss."""
    norm = draft.norm
    norm.forward = lambda x: type(norm).forward(_Frozen(norm), x)


class _Frozen:
    def __init__(self, norm: Any) -> None:
        self.weight, self.variance_epsilon = norm.weight.detach(), norm.variance_epsilon


def wrong_betas(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ports.training.optimizer, "BETAS", (0.9, 0.999))


def late_schedule(patch: pytest.MonkeyPatch) -> None:
    """The rate of step n + 1 is used at step n."""

    def make(old: Any) -> Any:
        def build(optimizer: Any, total: int, warmup: int) -> Any:
            schedule = old(optimizer, total, warmup)
            schedule.lr_lambdas = [lambda step, f=f: f(step + 1) for f in schedule.lr_lambdas]
            for group, rate in zip(optimizer.param_groups, schedule.base_lrs):
                group["lr"] = rate * schedule.lr_lambdas[0](0)
            return schedule

        return build

    wrap(patch, ports.training.loop, "build_schedule", make)


def double_step(patch: pytest.MonkeyPatch) -> None:
    """Every update is applied twice, with the same gradients."""

    class Twice(torch.optim.AdamW):
        def step(self, closure: Any = None) -> None:
            super().step()
            super().step()

    patch.setattr(ports.training.optimizer, "AdamW", Twice)


def miscounted_rows(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, ports.training.loss.ttt_objective, "mean_over", lambda old: lambda total, rows: old(total, rows + 1))


def generous_hits(patch: pytest.MonkeyPatch) -> None:
    def make(old: Any) -> Any:
        def score(*args: Any) -> Any:
            scores = old(*args)
            scores.hits.top[1] += 1
            return scores

        return score

    wrap(patch, ports.training.loss.ttt_objective, "score", make)


def shifted_map(patch: pytest.MonkeyPatch) -> None:
    def make(old: Any) -> Any:
        def load(*args: Any) -> Any:
            mapping = old(*args)
            mapping.d2t[0] += 1
            return mapping

        return load

    wrap(patch, ports.eagle3.train, "load_vocabulary_map", make)


def other_seed(patch: pytest.MonkeyPatch) -> None:
    wrap(
        patch,
        parity.runs.port.Tracer,
        "__init__",
        lambda old: lambda self, case, seed, reseed: old(self, case, 1, reseed),
    )


def tf32(patch: pytest.MonkeyPatch) -> None:
    def make(old: Any) -> Any:
        def describe(*args: Any) -> Any:
            torch.set_float32_matmul_precision("high")
            return old(*args)

        return describe

    wrap(patch, parity.runs.port, "describe", make)


def forgetful_converter(patch: pytest.MonkeyPatch) -> None:
    """A converter that leaves a weight as it was initialised."""

    def make(old: Any) -> Any:
        def save(self: Any, config: Any, weights: Any, *args: Any) -> Any:
            return old(self, config, {**weights, "fc.weight": torch.zeros_like(weights["fc.weight"])}, *args)

        return save

    wrap(patch, Eagle3Converter, "_save_converted_checkpoint", make)


def coarse_hidden(steps: list[Any]) -> None:
    """Three bits of mantissa."""
    for step in steps:
        mantissa, exponent = torch.frexp(step.hidden.float())
        coarse = torch.ldexp((mantissa * 8).round() / 8, exponent)
        step.hidden = step.hidden + (coarse - step.hidden).detach()


def nan_logit(patch: pytest.MonkeyPatch) -> None:
    """One logit the loss does not depend on: the run goes on, only the number is gone."""

    def make(old: Any) -> Any:
        def outcome(self: Any, micro_batch: int, result: Any) -> None:
            logits = result.steps[0].logits.detach().clone()
            logits[0, 0, 0] = float("nan")
            steps = [replace(result.steps[0], head=lambda hidden: logits), *result.steps[1:]]
            old(self, micro_batch, replace(result, steps=steps))

        return outcome

    wrap(patch, parity.runs.port.Tracer, "outcome", make)


def unfreeze_embedding(draft: Any) -> None:
    draft.embed_tokens.weight.requires_grad_(True)


def swap_last_checkpoint_weight(tensors: dict[str, Tensor]) -> None:
    name = "layers.0.self_attn.o_proj.weight"
    tensors[name] = tensors[name].T.contiguous()


def random_embedding(tensors: dict[str, Tensor]) -> None:
    with deterministic(3):
        tensors["embed_tokens.weight"] = torch.randn_like(tensors["embed_tokens.weight"])


def off_by_one(tensors: dict[str, Tensor]) -> None:
    tensors["d2t"] = tensors["d2t"] + 1


def _rope(config: Any) -> None:
    parameters = getattr(config.transformer_layer_config, "rope_parameters", None)
    (parameters or config.transformer_layer_config.rope_scaling)["factor"] = 2.0


def _residual(config: Any) -> None:
    config.norm_before_residual = False


def named(*checks: str) -> frozenset[str]:
    return frozenset(checks)


def scale_backward(factor: float) -> Plant:
    """The loss that is run backward is another multiple of the steps' losses."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def make(old: Any) -> Any:
            def forward(self: Any, *args: Any) -> Any:
                outcome = old(self, *args)
                return replace(outcome, backward_loss=outcome.backward_loss * factor)

            return forward

        wrap(patch, ports.hass.objective.HassObjective, "forward", make)

    return plant


def hass_history(patch: pytest.MonkeyPatch) -> None:
    """``forward`` with the one ``detach`` of the recursion left out."""

    def forward(self: Any, hidden: Tensor, input_ids: Tensor, mask: Any, ttt_steps: int, *_: Any) -> Any:
        fuse, cache, steps = self.fusion(self.embed(input_ids)), ttt_cache(), []
        for _ in range(ttt_steps):
            out = self.step(fuse, hidden, mask, cache)
            steps.append(Step(hidden, out, lambda out: self.lm_head(self.lm_head_layernorm(out))))
            hidden = next_hidden(hidden, out)
        return steps

    patch.setattr(HassDraftModel, "forward", forward)


def norm_after_fc(patch: pytest.MonkeyPatch) -> None:
    def step(self: Any, fuse: Any, hidden: Tensor, mask: Tensor, cache: Any, *_: Any) -> Tensor:
        return _layers(self, self.hidden_layernorm(fuse(hidden)), mask, cache)

    patch.setattr(HassDraftModel, "step", step)


def _layers(draft: Any, out: Tensor, mask: Tensor, cache: Any) -> Tensor:
    rotary = draft.rotary_emb(out, torch.arange(out.shape[1])[None])
    for layer in draft.layers:
        out = layer(out, attention_mask=mask, past_key_values=cache, position_embeddings=rotary)
    return out


def norm_residual(patch: pytest.MonkeyPatch) -> None:
    """The residual stream starts at a normed state, as Eagle3's does."""

    def step(self: Any, fuse: Any, hidden: Tensor, mask: Tensor, cache: Any, *_: Any) -> Tensor:
        out = fuse(self.hidden_layernorm(hidden))
        return _layers(self, out, mask, cache) - out + torch.nn.functional.rms_norm(out, out.shape[-1:])

    patch.setattr(HassDraftModel, "step", step)


def clip_hass_by_norm(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ports.hass.train, "clip_by_value", ports.eagle3.train.clip_by_norm)


def thaw(name: str) -> Plant:
    """Train a part of the HASS draft that belongs to the verifier."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def make(old: Any) -> Any:
            def build(settings: Any) -> Any:
                draft = old(settings)
                draft.get_parameter(name).requires_grad_(True)
                return draft

            return build

        wrap(patch, ports.hass.train, "build", make)

    return plant


def forget_generators(patch: pytest.MonkeyPatch) -> None:
    """Resuming leaves every generator as the new process happens to have it, and does not look."""
    patch.setattr(ports.training.checkpoint.generators, "restore", lambda *args: None)
    patch.setattr(ports.training.loop.Loop, "_check_replay", lambda *args: None)


def schedule_one_ahead(patch: pytest.MonkeyPatch) -> None:
    def make(old: Any) -> Any:
        def restore(loop: Any, *args: Any) -> None:
            old(loop, *args)
            loop.schedule.scheduler.last_epoch += 1

        return restore

    wrap(patch, ports.training.checkpoint.resume, "_restore_schedule", make)


def coarse_adam(patch: pytest.MonkeyPatch) -> None:
    """Moments go through bfloat16 on their way to the file."""

    def make(old: Any) -> Any:
        def state(*args: Any) -> dict[str, Tensor]:
            return {
                name: value if name[:4] == "step" else value.bfloat16().float() for name, value in old(*args).items()
            }

        return state

    wrap(patch, ports.training.checkpoint.keeper, "adam_state", make)


def lost_step_count(patch: pytest.MonkeyPatch) -> None:
    def make(old: Any) -> Any:
        def load(file: Path, stored: dict[str, Tensor], *args: Any) -> None:
            old(file, {n: torch.zeros_like(v) if n[:4] == "step" else v for n, v in stored.items()}, *args)

        return load

    wrap(patch, ports.training.checkpoint.resume, "load_adam_state", make)


def restarted_sampler(patch: pytest.MonkeyPatch) -> None:
    """The pass begins anew after a resume, although its totals and generators are the saved ones."""

    def make(old: Any) -> Any:
        def batches(self: Any) -> Any:
            seen, self.totals.batches = self.totals.batches, 0
            left = old(self)
            self.totals.batches = seen
            return left

        return batches

    wrap(patch, ports.training.loop.Loop, "_batches", make)
    patch.setattr(ports.training.loop.Loop, "_check_replay", lambda *args: None)


def documents_leak(patch: pytest.MonkeyPatch) -> None:
    """Attention takes a packed row for one document."""

    def one_document(mask: Tensor) -> Any:
        return replace(documents_of(mask), lengths=(), right_padded=True)

    patch.setattr(ports.training.attention.flash, "documents_of", one_document)


def recomputed_alone(patch: pytest.MonkeyPatch) -> None:
    """A layer that runs again in the backward hands no gradient on to what came before it."""
    wrap(
        patch,
        ports.training.attention.recompute,
        "checkpoint",
        lambda old: lambda layer, hidden, **inputs: old(layer, hidden.detach(), **inputs),
    )


def plain_loss_of_all_rows(patch: pytest.MonkeyPatch) -> None:
    """The loss that is written for reading does not look at the mask."""
    wrap(
        patch,
        ports.training.loss.scoring,
        "kl_sum",
        lambda old: lambda logits, target, rows: old(logits, target, torch.ones_like(rows)),
    )


def last_of_several(patch: pytest.MonkeyPatch) -> None:
    """Only wide rows are searched in blocks."""
    wrap(
        patch,
        ports.training.loss.fused_loss,
        "argmax",
        lambda old: lambda values: (old(values) - int(values.shape[-1] > 1024)).clamp(min=0),
    )


def ragged_rows_seen_whole(patch: pytest.MonkeyPatch) -> None:
    """A row that lacks one token is attended to as if it had it."""

    def make(old: Any) -> Any:
        def documents(mask: Tensor) -> Any:
            found = old(mask)
            return replace(found, right_padded=True) if int((mask == 0).sum()) == 1 else found

        return documents

    wrap(patch, ports.training.attention.flash, "documents_of", make)


def warm_up_rounded_up(patch: pytest.MonkeyPatch) -> None:
    """Of runs longer than any that was recorded."""

    def make(old: Any) -> Any:
        def steps(*args: int) -> tuple[int, int]:
            total, warmup = old(*args)
            return total, warmup + int(total > 1000)

        return steps

    wrap(patch, ports.training.settings, "linear_schedule_steps", make)


def first_row_in_no_loss(patch: pytest.MonkeyPatch) -> None:
    """Chain takes the first position out of step 0 too."""

    def make(old: Any) -> Any:
        def rows(mask: Tensor, step: int, *args: Any) -> Any:
            return old(mask, max(step, 1), *args)

        return rows

    wrap(patch, ports.training.loss.objective, "step_rows", make)


def derived_projections_split(patch: pytest.MonkeyPatch) -> None:
    """What a library made of a projection is passed by."""
    patch.setattr(
        ports.training.attention.shared_half,
        "can_split",
        lambda module, projections: all(each.weight.dtype is torch.float32 for each in projections),
    )


def lines_of_empty_batches(patch: pytest.MonkeyPatch) -> None:
    """Batches without a row in the loss are logged as perfect ones."""
    wrap(patch, ports.training.metrics, "log_entry", lambda old: lambda *args: old(*args) or {"train/acc": 1.0})


def always_fused(patch: pytest.MonkeyPatch) -> None:
    """``--loss_implementation eager`` changes nothing."""

    def make(old: Any) -> Any:
        def score(*args: Any) -> Any:
            return old(*args[:5], ports.training.loss.scoring.LossImplementation.FUSED, *args[6:])

        return score

    wrap(patch, ports.training.loss.scoring, "score", make)


def watched_modules_passed_by(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ports.eagle3.first_layer, "can_share", lambda layer: True)


def later_layers_cut_off(patch: pytest.MonkeyPatch) -> None:
    """Gradients stop at a second layer, which no recorded draft has."""

    def make(old: Any) -> Any:
        def on_rows(layer: Any, rows: Any) -> Any:
            bound = old(layer, rows)
            return lambda hidden, **context: bound(hidden.detach(), **context)

        return on_rows

    wrap(patch, ports.eagle3.model, "on_trained_rows", make)


def stale_answers(patch: pytest.MonkeyPatch) -> None:
    """What was asked about a mask is remembered though the mask was written to."""

    def remember(ask: Any) -> Any:
        known: dict[int, Any] = {}
        return functools.wraps(ask)(lambda tensor: known.setdefault(id(tensor), ask(tensor)))

    patch.setattr(ports.training.attention.once, "once_per_tensor", remember)


def gradient_on_every_row(patch: pytest.MonkeyPatch) -> None:
    """Rows in no loss run with gradient too: the same numbers, for more time and memory."""
    patch.setattr(TrainedRows, "apply", lambda self, function, states: function(states))


def log_renumbered(patch: pytest.MonkeyPatch) -> None:
    """A run that goes on in another directory counts the steps of its log from 1."""

    def make(old: Any) -> Any:
        return lambda content, file: old(content.replace(b'{"step": 0', b'{"step": 1'), file)

    wrap(patch, ports.training.checkpoint.resume, "_copy", make)


def refusals_without_a_word(patch: pytest.MonkeyPatch) -> None:
    """Generators that nobody can have saved are refused without saying which."""

    def make(old: Any) -> Any:
        def check(file: Path, *args: Any) -> None:
            try:
                old(file, *args)
            except InputError as error:
                raise InputError(file, "generators", "bad ones", "good ones") from error

        return check

    wrap(patch, ports.training.checkpoint.generators, "check", make)


def small_manifests_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ports.training.checkpoint.manifest, "LARGEST", 1 << 20)


def no_tied_tables(patch: pytest.MonkeyPatch) -> None:
    """A verifier with one table for both ends gives a head of zeros."""

    def make(old: Any) -> Any:
        def load(names: Any, path: Any) -> Any:
            found = old(names, path)
            return {"lm_head.weight": torch.zeros_like(next(iter(found.values()))), **found}

        return load

    wrap(patch, ports.training.frozen_ends, "load_model_layers", make)


def hidden_directories_seen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ports.training.checkpoint.atomic, "present", lambda parent: [*parent.iterdir()])


def bars_always_drawn(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, ports.training.loop, "tqdm", lambda old: lambda *args, disable, **options: old(*args, **options))


def stopped_without_saving(patch: pytest.MonkeyPatch) -> None:
    """A run that is asked to stop names its last checkpoint, however old."""
    wrap(
        patch,
        ports.training.checkpoint.keeper.CheckpointKeeper,
        "on_stop",
        lambda old: lambda self, loop: self._last[1] if self._last else old(self, loop),
    )


def metrics_nobody_logs(patch: pytest.MonkeyPatch) -> None:
    """Eagle3 logs HASS' cross-entropies."""
    patch.setattr(ports.eagle3.objective.Eagle3Objective, "topk", 1)


def arrow_target_before_the_norm(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ports.training.data.prepared.PreparedDataset, "_normed", lambda self, file, last: last)


def trusting_masks(patch: pytest.MonkeyPatch) -> None:
    """A mask that does not fit its ids is cut or filled up."""

    def make(old: Any) -> Any:
        def check(path: Path, record: Any, *args: Any) -> Any:
            ids, mask = record.get("input_ids"), record.get("loss_mask")
            if isinstance(ids, Tensor) and isinstance(mask, Tensor) and mask.shape != ids.shape:
                record = {**record, "loss_mask": torch.zeros_like(ids)}
            return old(path, record, *args)

        return check

    wrap(patch, ports.training.data.records, "check_record", make)


def unverified(patch: pytest.MonkeyPatch) -> None:
    """A named checkpoint is taken as it lies."""
    patch.setattr(ports.training.checkpoint.choose, "verify", lambda directory: None)


def oldest_kept(patch: pytest.MonkeyPatch) -> None:
    """``--keep_last`` forgets the best pass."""
    wrap(
        patch,
        ports.training.checkpoint.keeper.CheckpointKeeper,
        "_thin_out",
        lambda old: lambda self: old(_Without(self)),
    )


class _Without:
    """A keeper that knows of no best pass."""

    best = None

    def __init__(self, keeper: Any) -> None:
        self.settings, self.prefix, self._kept = keeper.settings, keeper.prefix, keeper._kept


def wiped_accumulation(patch: pytest.MonkeyPatch) -> None:
    """Gradients of the micro-batches before the last one are thrown away, as the prototypes do."""

    def make(old: Any) -> Any:
        def forward_backward(self: Any, *args: Any) -> Any:
            self.optimizer.optimizer.zero_grad()
            return old(self, *args)

        return forward_backward

    wrap(patch, ports.training.loop.Loop, "_forward_backward", make)


def undrawn(patch: pytest.MonkeyPatch) -> None:
    """Matrices stay as Speculators draws them."""
    patch.setattr(ports.eagle3.model, "_initialise", lambda draft: None)


def drawn_too_wide(patch: pytest.MonkeyPatch) -> None:
    """Twice torch's range."""

    def make(old: Any) -> Any:
        def initialise(self: Any, module: Any) -> None:
            old(self, module)
            if isinstance(module, torch.nn.Linear):
                module.weight.data.mul_(2)

        return initialise

    wrap(patch, FrozenEnds, "_init_weights", make)


def keywords_of_one_step(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FrozenEnds, "get_trainer_kwargs", staticmethod(lambda **kwargs: ({"ttt_steps": 1}, {"ttt_steps": 1})))


def keywords_of_the_class_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FrozenEnds, "get_trainer_kwargs", FrozenEnds.__dict__["get_trainer_kwargs"].__func__)


def made_without_verifier(patch: pytest.MonkeyPatch) -> None:
    """What the extension point makes keeps NaN where the verifier's weights belong."""

    def make(old: Any) -> Any:
        def build(cls: Any, config: Any, **kwargs: Any) -> Any:
            draft = old.__func__(cls, config, **kwargs)
            draft.lm_head.weight.data.fill_(torch.nan)
            return draft

        return classmethod(build)

    patch.setattr(FrozenEnds, "from_training_args", make(FrozenEnds.__dict__["from_training_args"]))


def only_the_ends_of_records(patch: pytest.MonkeyPatch) -> None:
    """Safetensors are digested as the prototypes' archives are: from the end alone."""
    patch.setattr(ports.training.checkpoint.fingerprint, "SUFFIX", ".none")


def must_delete(patch: pytest.MonkeyPatch) -> None:
    """A removal is not done until everything is off the disk."""

    def remove(directory: Path) -> None:
        removed = directory.with_name(f".{directory.name}.removed")
        directory.rename(removed)
        shutil.rmtree(removed)

    patch.setattr(ports.training.checkpoint.atomic, "remove_directory", remove)


def not_put_back(patch: pytest.MonkeyPatch) -> None:
    """What was moved aside stays there when the new directory cannot take its place."""

    def replace(new: Path, directory: Path) -> None:
        old = directory.with_name(f"{ports.training.checkpoint.atomic.MARK}{directory.name}.old")
        if directory.exists():
            directory.rename(old)
        new.rename(directory)
        shutil.rmtree(old, ignore_errors=True)

    patch.setattr(ports.training.checkpoint.atomic, "_replace", replace)


def other_size_of_the_unreadable(patch: pytest.MonkeyPatch) -> None:
    wrap(
        patch,
        ports.training.checkpoint.fingerprint,
        "_ends_of",
        lambda old: lambda file: old(file) if file.exists() else (1, b""),
    )


def longer_digests(patch: pytest.MonkeyPatch) -> None:
    """A checkpoint of an earlier release is another run's."""
    wrap(patch, ports.training.checkpoint.fingerprint, "_digest", lambda old: lambda content: old(content) + "0")


FAULTS = (
    Fault("records that are gone digested as others", other_size_of_the_unreadable, named("upkeep")),
    Fault("longer digests", longer_digests, named("upkeep")),
    Fault("only the ends of records digested", only_the_ends_of_records, named("upkeep")),
    Fault("a removal insists on deleting", must_delete, named("upkeep")),
    Fault("old checkpoint not put back", not_put_back, named("upkeep")),
    Fault("fresh matrices not drawn", undrawn, named("initial")),
    Fault("hass: fresh matrices too wide", drawn_too_wide, named("initial"), "hass_fp32_k3"),
    Fault("hass: keywords of one step", keywords_of_one_step, named("initial"), "hass_fp32_k3"),
    Fault("hass: keywords of the class alone", keywords_of_the_class_alone, named("initial"), "hass_fp32_k3"),
    Fault("hass: extension without verifier", made_without_verifier, named("initial"), "hass_fp32_k3"),
    Fault("accumulated gradients wiped", wiped_accumulation, named("implementations")),
    Fault("recomputed layers cut off", recomputed_alone, named("implementations")),
    Fault("plain loss over all rows", plain_loss_of_all_rows, named("implementations")),
    Fault("another column of wide rows", last_of_several, named("sizes")),
    Fault("one missing token attended to", ragged_rows_seen_whole, named("sizes")),
    Fault("warm-up rounded up", warm_up_rounded_up, named("corners")),
    Fault("chain: first row in no loss", first_row_in_no_loss, named("corners")),
    Fault("derived projections split", derived_projections_split, named("corners")),
    Fault("batches without rows logged", lines_of_empty_batches, named("corners")),
    Fault("always the fused loss", always_fused, named("corners")),
    Fault("watched modules passed by", watched_modules_passed_by, named("implementations")),
    Fault("chain: later layers cut off", later_layers_cut_off, named("chain")),
    Fault("stale answers about a mask", stale_answers, named("corners")),
    Fault("gradient on every row", gradient_on_every_row, named("corners")),
    Fault("log renumbered", log_renumbered, named("resume")),
    Fault("refusals without a word", refusals_without_a_word, named("refusals")),
    Fault("small manifests only", small_manifests_only, named("upkeep")),
    Fault("hidden directories seen", hidden_directories_seen, named("upkeep")),
    Fault("hass: no tied tables", no_tied_tables, named("initial"), "hass_fp32_k3"),
    Fault("bars always drawn", bars_always_drawn, named("upkeep")),
    Fault("stopped without saving", stopped_without_saving, named("upkeep")),
    Fault("metrics nobody logs", metrics_nobody_logs, named("curve")),
    Fault("arrow targets before the norm", arrow_target_before_the_norm, named("sources")),
    Fault("masks of another length trusted", trusting_masks, named("refusals")),
    Fault("best pass thrown away", oldest_kept, named("upkeep")),
    Fault("checkpoints not verified", unverified, named("upkeep", "refusals")),
    Fault("own-position keys off", swap_attention("ttt_prototype_fast", "ttt_chain_fast"), named("forward")),
    Fault("resume: generators not restored", forget_generators, named("resume")),
    Fault("resume: schedule one step ahead", schedule_one_ahead, named("resume")),
    Fault("resume: Adam's moments in bfloat16", coarse_adam, named("resume")),
    Fault("resume: step count lost", lost_step_count, named("resume")),
    Fault("resume: sampler restarted", restarted_sampler, named("resume")),
    Fault("packing: documents leak into each other", documents_leak, named("packing")),
    Fault("residual un-normed", change_config(_residual), named("forward")),
    Fault("wrong rope scaling", change_config(_rope), named("forward")),
    Fault("NaN in a logit", nan_logit, named("forward")),
    Fault("mask shifted by one", shift_mask, named("batches")),
    Fault("post-norm target normed twice", norm_target_twice, named("targets")),
    Fault("rows miscounted in the mean", miscounted_rows, named("loss")),
    Fault(
        "lm_head frozen",
        change_draft(lambda d: d.lm_head.weight.requires_grad_(False)),
        named("gradients", "gradient_flow"),
    ),
    Fault("history detached", detach_history, named("paths")),
    Fault("one weight detached", change_draft(detach_norm), named("gradients", "gradient_flow")),
    Fault("embedding thawed", change_draft(unfreeze_embedding), named("gradient_flow")),
    Fault("Adam beta off", wrong_betas, named("configuration", "curve")),
    Fault("update applied twice", double_step, named("optimizer_step")),
    Fault("lr shifted by one step", late_schedule, named("curve")),
    Fault("hits overcounted", generous_hits, named("hits")),
    Fault("seed changed", other_seed, named("configuration")),
    Fault("matmul precision lowered", tf32, named("environment")),
    Fault("d2t off by one in the draft", shifted_map, named("configuration", "round_trip")),
    Fault("d2t off by one in the file", change_file(off_by_one), named("round_trip")),
    Fault("a key missing", change_file(lambda t: t.pop("norm.weight")), named("round_trip")),
    Fault("a key too many", change_file(lambda t: t.update(spare=torch.zeros(1))), named("round_trip")),
    Fault("a weight transposed", change_file(swap_last_checkpoint_weight), named("round_trip")),
    Fault("embeddings left random", change_file(random_embedding), named("round_trip")),
    Fault("converter leaves a weight out", forgetful_converter, named("converted")),
    Fault(
        "chain keys read at the own position", swap_attention("ttt_chain_fast", "ttt_prototype_fast"), named("chain")
    ),
    Fault("hidden states too coarse", change_steps(coarse_hidden), named("precision"), "eagle3_bf16ds_k3"),
    Fault("hass: history not detached", hass_history, named("paths"), "hass_fp32_k3"),
    Fault("hass: gradients averaged", scale_backward(1 / 3), named("gradients"), "hass_fp32_k3"),
    Fault("hass: norm after fc", norm_after_fc, named("forward"), "hass_fp32_k3"),
    Fault("hass: residual normed", norm_residual, named("forward"), "hass_fp32_k3"),
    Fault("hass: clip by norm", clip_hass_by_norm, named("optimizer_step"), "hass_fp32_k3"),
    Fault(
        "hass: head trained",
        thaw("lm_head.weight"),
        named("gradients", "gradient_flow", "round_trip"),  # the head is in no checkpoint, so what it learned is lost
        "hass_fp32_k3",
    ),
    Fault("hass: embedding trained", thaw("embed_tokens.weight"), named("gradient_flow"), "hass_fp32_k3"),
)
