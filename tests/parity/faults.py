"""Faults to plant in the port, each with the checks that must name it. Nothing else may fail; the rest is blocked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from speculators.convert.eagle.eagle3_converter import Eagle3Converter
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

import ports.eagle3.model
import ports.eagle3.objective
import ports.eagle3.train
import ports.hass.objective
import ports.hass.train
import ports.training.data
import ports.training.keeper
import ports.training.loop
import ports.training.objective
import ports.training.optimizer
import ports.training.resume
from ports.hass.model import HassDraftModel
from ports.training.attention import ttt_cache
from ports.training.objective import Step, next_hidden
from ports.training.settings import TrainingSettings

Plant = Callable[[pytest.MonkeyPatch], None]

LAYERS = "eagle_aux_hidden_state_layer_ids"
O_PROJ = "layers.0.self_attn.o_proj.weight"
LOOP = ports.training.loop.Loop
KEEPER, RESUME = ports.training.keeper, ports.training.resume


@dataclass(frozen=True)
class Fault:
    """``plant`` breaks the port; ``named_by`` are the checks that fail, all of them and no other."""

    name: str
    plant: Plant
    named_by: frozenset[str]
    case: str = "eagle3_fp32_k3"


def puts(owner: Any, name: str, value: Any) -> Plant:
    """Something else stands in its place."""
    return lambda patch: patch.setattr(owner, name, value)


def returns(owner: Any, name: str, change: Callable[[Any], Any]) -> Plant:
    """``owner.name`` gives what ``change`` makes of its result."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        old = getattr(owner, name)
        patch.setattr(owner, name, lambda *args, **named: change(old(*args, **named)))

    return plant


def alters(owner: Any, name: str, change: Callable[[Any], object]) -> Plant:
    """What ``owner.name`` gives is altered where it is."""
    return returns(owner, name, lambda found: (found, change(found))[0])


def takes(owner: Any, name: str, change: Callable[..., tuple[Any, ...]]) -> Plant:
    """``owner.name`` is called with what ``change`` makes of its arguments."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        old = getattr(owner, name)
        patch.setattr(owner, name, lambda *args, **named: old(*change(*args), **named))

    return plant


def both(*plants: Plant) -> Plant:
    return lambda patch: [plant(patch) for plant in plants] and None


def change_config(change: Callable[[Any], object]) -> Plant:
    """Alter the draft's config between reading and building."""
    return takes(ports.eagle3.train, "build_draft", lambda config, *rest: (config, *rest, change(config))[:-1])


def unrefused(plant: Plant) -> Plant:
    """A fault that a run of the port refuses by itself, for the harness to see: the refusal is off."""

    def both(patch: pytest.MonkeyPatch) -> None:
        plant(patch)
        patch.setattr(ports.training.loop, "without_gradient", lambda module: [])

    return both


def change_draft(change: Callable[[Any], object]) -> Plant:
    """Alter the draft after building."""
    return alters(ports.eagle3.train, "build_draft", change)


def change_file(change: Callable[[dict[str, Tensor]], object]) -> Plant:
    """Alter the tensors of every checkpoint after it was written."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        old = KEEPER.write_draft

        def save(draft: Any, folder: Path, *args: Any) -> None:
            old(draft, folder, *args)
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")

        patch.setattr(KEEPER, "write_draft", save)

    return plant


def change_config_file(change: Callable[[dict[str, Any]], object]) -> Plant:
    """Alter the configuration of every checkpoint after it was written."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        old = KEEPER.write_draft

        def save(draft: Any, folder: Path, *args: Any) -> None:
            old(draft, folder, *args)
            config = json.loads((folder / "config.json").read_text())
            change(config)
            (folder / "config.json").write_text(json.dumps(config))

        patch.setattr(KEEPER, "write_draft", save)

    return plant


def swap_attention(name: str, other: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        functions = ALL_ATTENTION_FUNCTIONS._global_mapping
        patch.setitem(functions, name, functions[other])
        AttentionInterface.register(name, functions[other])

    return plant


def wrong_rope(config: Any) -> None:
    parameters = getattr(config.transformer_layer_config, "rope_parameters", None)
    (parameters or config.transformer_layer_config.rope_scaling)["factor"] = 2.0


def detach_norm(draft: Any) -> None:
    """The final norm's weight is cut off from the loss."""
    norm = draft.norm
    norm.forward = lambda x: type(norm).forward(_Frozen(norm), x)


class _Frozen:
    def __init__(self, norm: Any) -> None:
        self.weight, self.variance_epsilon = norm.weight.detach(), norm.variance_epsilon


def coarse_hidden(steps: list[Any]) -> None:
    """Three bits of mantissa."""
    for step in steps:
        mantissa, exponent = torch.frexp(step.hidden.float())
        coarse = torch.ldexp((mantissa * 8).round() / 8, exponent)
        step.hidden = step.hidden + (coarse - step.hidden).detach()


def next_rates(schedule: Any) -> None:
    """The rate of step n + 1 is used at step n."""
    schedule.lr_lambdas = [lambda step, f=f: f(step + 1) for f in schedule.lr_lambdas]
    for group, rate in zip(schedule.optimizer.param_groups, schedule.base_lrs):
        group["lr"] = rate * schedule.lr_lambdas[0](0)


def lower_rates(schedule: Any) -> None:
    """By a thousandth, which no loss shows."""
    schedule.lr_lambdas = [lambda step, f=f: 0.999 * f(step) for f in schedule.lr_lambdas]
    for group in schedule.optimizer.param_groups:
        group["lr"] *= 0.999


class Twice(torch.optim.AdamW):
    """Every update is applied twice, with the same gradients."""

    def step(self, closure: Any = None) -> None:
        super().step()
        super().step()


def thaw_embedding(draft: Any) -> None:
    """Trained, says the draft, though nothing reaches it."""
    draft.embed_tokens.weight.requires_grad_(True)


def hass_history(self: Any, hidden: Tensor, input_ids: Tensor, mask: Any, ttt_steps: int, *_: Any) -> Any:
    """``unroll`` with the one ``detach`` of the recursion left out."""
    fuse, cache, steps = self.fusion(self.embed(input_ids)), ttt_cache(), []
    for _ in range(ttt_steps):
        out = self.step(fuse, hidden, mask, cache)
        steps.append(Step(hidden, out, lambda out: self.lm_head(self.lm_head_layernorm(out))))
        hidden = next_hidden(hidden, out)
    return steps


def norm_after_fc(self: Any, fuse: Any, hidden: Tensor, mask: Tensor, cache: Any, *_: Any) -> Tensor:
    """``step`` with the hidden states normed after the fusion instead of before it."""
    out = self.hidden_layernorm(fuse(hidden))
    rotary = self.rotary_emb(out, torch.arange(out.shape[1])[None])
    for layer in self.layers:
        out = layer(out, attention_mask=mask, past_key_values=cache, position_embeddings=rotary)
    return out


def later_layers_cut_off(patch: pytest.MonkeyPatch) -> None:
    """Gradients stop at a second layer, which no recorded draft has."""
    old = ports.eagle3.model.run_layers

    def cut(layers: Any, *args: Any, **named: Any) -> Any:
        first, *later = layers
        return old([first, *(partial(detached, layer) for layer in later)], *args, **named)

    def detached(layer: Any, hidden: Tensor, **context: Any) -> Tensor:
        out: Tensor = layer(hidden.detach(), **context)
        return out

    patch.setattr(ports.eagle3.model, "run_layers", cut)


def unnormed_twice(hidden: Tensor, *rest: Any) -> tuple[Any, ...]:
    return hidden / hidden.pow(2).mean(-1, keepdim=True).add(1e-5).sqrt(), *rest


def rounded_head(hidden: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """To bfloat16, as the draft's own head is."""
    return hidden, head.bfloat16().float()


def averaged(outcome: Any) -> Any:
    """Over three TTT steps, where the prototypes add up."""
    return replace(outcome, backward_loss=outcome.backward_loss / 3)


def forgetful(self: Any, config: Any, weights: Any, *rest: Any) -> tuple[Any, ...]:
    """A converter that leaves a weight as it was initialised."""
    return self, config, {**weights, "fc.weight": torch.zeros_like(weights["fc.weight"])}, *rest


def coarse_moments(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Through bfloat16 on their way to the file."""
    return {name: value if name[:4] == "step" else value.bfloat16().float() for name, value in state.items()}


def schedule_one_ahead(patch: pytest.MonkeyPatch) -> None:
    old = RESUME._restore_schedule

    def restore(loop: Any, *args: Any) -> None:
        old(loop, *args)
        loop.schedule.scheduler.last_epoch += 1

    patch.setattr(RESUME, "_restore_schedule", restore)


def restarted_sampler(patch: pytest.MonkeyPatch) -> None:
    """The pass begins anew after a resume, although its totals and generators are the saved ones."""
    old = LOOP._batches

    def batches(self: Any) -> Any:
        seen, self.totals.batches = self.totals.batches, 0
        left = old(self)
        self.totals.batches = seen
        return left

    patch.setattr(LOOP, "_batches", batches)
    patch.setattr(LOOP, "_check_replay", lambda *args: None)


def _first_of_map(mapping: Any) -> None:
    mapping.d2t[0] += 1


def _one_more_hit(scores: Any) -> None:
    scores.hits.top[1] += 1


def fault(name: str, plant: Plant, *checks: str, case: str = "eagle3_fp32_k3") -> Fault:
    return Fault(name, plant, frozenset(checks), case)


def hass(name: str, plant: Plant, *checks: str) -> Fault:
    return fault(f"hass: {name}", plant, *checks, case="hass_fp32_k3")


UNROLL = (ports.eagle3.objective, "unroll")
OBJECTIVE = ports.training.objective

FAULTS = (
    fault(
        "matmul precision lowered",
        alters(KEEPER, "write_draft", lambda _: torch.set_float32_matmul_precision("high")),
        "environment",
    ),
    fault("Adam beta off", puts(ports.training.optimizer, "BETAS", (0.9, 0.999)), "configuration", "optimizer_step"),
    fault(
        "d2t off by one in the draft",
        alters(ports.eagle3.train, "load_vocabulary_map", _first_of_map),
        *("configuration", "round_trip"),
    ),
    fault(
        "mask shifted by one",
        alters(
            ports.training.data, "make_sample", lambda one: setattr(one, "loss_mask", torch.roll(one.loss_mask, -1))
        ),
        "batches",
    ),
    fault("post-norm target normed twice", takes(ports.eagle3.objective, "Verifier", unnormed_twice), "targets"),
    fault("own-position keys off", swap_attention("ttt_prototype_fast", "ttt_chain_fast"), "forward"),
    fault("residual un-normed", change_config(lambda c: setattr(c, "norm_before_residual", False)), "forward"),
    fault("wrong rope scaling", change_config(wrong_rope), "forward"),
    hass("norm after fc", puts(HassDraftModel, "step", norm_after_fc), "forward"),
    fault("rows miscounted in the mean", takes(OBJECTIVE, "mean_over", lambda total, rows: (total, rows + 1)), "loss"),
    fault("hidden states too coarse", alters(*UNROLL, coarse_hidden), "precision", case="eagle3_bf16ds_k3"),
    fault("history detached", returns(ports.eagle3.model, "next_hidden", Tensor.detach), "paths"),
    hass("history not detached", puts(HassDraftModel, "unroll", hass_history), "paths"),
    hass(
        "gradients averaged",
        returns(ports.hass.objective.HassObjective, "forward", averaged),
        "gradients",
    ),
    fault(
        "lm_head frozen",
        change_draft(lambda draft: draft.lm_head.weight.requires_grad_(False)),
        *("gradients", "gradient_flow"),
    ),
    fault("one weight detached", unrefused(change_draft(detach_norm)), "gradients", "gradient_flow"),
    fault("embedding thawed", unrefused(change_draft(thaw_embedding)), "gradient_flow"),
    # the head is in no checkpoint, so what it learned is lost
    hass(
        "head trained",
        alters(ports.hass.train, "build", lambda draft: draft.lm_head.weight.requires_grad_(True)),
        *("weights", "gradient_flow", "round_trip"),
    ),
    fault("update applied twice", puts(ports.training.optimizer, "AdamW", Twice), "optimizer_step"),
    hass("clip by norm", puts(ports.hass.train, "clip_by_value", ports.eagle3.train.clip_by_norm), "clip"),
    fault("lr shifted by one step", alters(ports.training.loop, "build_schedule", next_rates), "schedule"),
    *(
        fault(f"in bfloat16: {name}", plant, *checks, case="eagle3_bf16ds_k3")
        for name, plant, *checks in (
            (
                "clip 2 % off",
                takes(Accelerator, "clip_grad_norm_", lambda self, *given: (self, given[0], 1.02)),
                "clip",
            ),
            ("rate 0.1 % low", alters(ports.training.loop, "build_schedule", lower_rates), "schedule"),
            ("target of a rounded head", takes(ports.eagle3.objective, "Verifier", rounded_head), "precision"),
            (
                "gradients averaged, which clipping hides",
                returns(ports.eagle3.objective.Eagle3Objective, "forward", averaged),
                "precision",
            ),
            ("beta2 0.951", puts(ports.training.optimizer, "BETAS", (0.9, 0.951)), "configuration", "optimizer_step"),
        )
    ),
    fault(
        "accumulation forgotten in the schedule",
        puts(TrainingSettings, "samples_per_step", lambda self, processes=1: self.bs),
        *("configuration", "schedule"),
        case="eagle3_fp32_k3_ga2",
    ),
    fault("metrics nobody logs", puts(ports.eagle3.objective.Eagle3Objective, "topk", 1), "curve"),
    fault("hits overcounted", alters(OBJECTIVE, "fused_scores", _one_more_hit), "hits"),
    fault("d2t off by one in the file", change_file(lambda t: t["d2t"].add_(1)), "round_trip"),
    fault("a key missing", change_file(lambda t: t.pop("norm.weight")), "round_trip"),
    fault("a key too many", change_file(lambda t: t.update(spare=torch.zeros(1))), "round_trip"),
    fault("a weight transposed", change_file(lambda t: t.update({O_PROJ: t[O_PROJ].T})), "round_trip"),
    fault("embeddings left random", change_file(lambda t: t["embed_tokens.weight"].cos_()), "round_trip"),
    fault("layers off by one in the file", change_config_file(lambda c: c.update({LAYERS: [2, 4, 5]})), "round_trip"),
    fault("layers off by one in the draft", change_config(lambda c: setattr(c, LAYERS, [2, 4, 5])), "round_trip"),
    hass(
        "one more token proposed",
        takes(ports.hass.train, "load_draft_config", lambda path, verifier, k, *rest: (path, verifier, k + 1, *rest)),
        "round_trip",
    ),
    fault("chain keys read at the own position", swap_attention("ttt_chain_fast", "ttt_prototype_fast"), "chain"),
    fault("chain: later layers cut off", later_layers_cut_off, "chain"),
    # every generator stays as the new process happens to have it, and nobody looks
    fault(
        "resume: generators not restored",
        both(
            puts(LOOP, "put_back", lambda *args: None),
            puts(LOOP, "_check_replay", lambda *args: None),
        ),
        "resume",
    ),
    fault("resume: schedule one step ahead", schedule_one_ahead, "resume"),
    fault("resume: Adam's moments in bfloat16", returns(KEEPER, "adam_state", coarse_moments), "resume"),
    fault("resume: sampler restarted", restarted_sampler, "resume"),
    fault(
        "resume: log renumbered",
        returns(RESUME, "_beginning", lambda content: content and content.replace(b'{"step": 0', b'{"step": 1')),
        "resume",
    ),
    fault(
        "converter leaves a weight out", takes(Eagle3Converter, "_save_converted_checkpoint", forgetful), "converted"
    ),
)
