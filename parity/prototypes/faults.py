"""Faults of the two ports, beyond those that any port can have: what is declared for ``parity run --power``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

import ports.eagle3.model
import ports.eagle3.objective
import ports.eagle3.train
import ports.hass.objective
import ports.hass.train
import ports.training.checkpoint_manager
import ports.training.loop
import ports.training.no_effect
import ports.training.objective
import ports.training.resume
from parity.faults import saved
from parity.plants import Fault, Ground, Plant, giving, patched, several, taking
from parity.prototypes.case import RecordedCase
from parity.prototypes.checkpoints import LAYERS
from ports.hass.model import HassDraftModel
from ports.training.attention import ttt_cache
from ports.training.objective import Step, next_hidden

EAGLE3, HASS, OBJECTIVE = ports.eagle3, ports.hass, ports.training.objective
LOOP, MANAGER, RESUME = ports.training.loop.Loop, ports.training.checkpoint_manager, ports.training.resume


def in_config(change: Callable[[Any], object]) -> Plant:
    """In Eagle3's config, between reading and building."""
    return taking(EAGLE3.train, "build_draft", lambda config, *rest: (config, *rest, change(config))[:-1])


def unwatched(plant: Plant) -> Plant:
    """A fault that a run of the port refuses by itself, for the harness to see: the refusal is off."""
    return several(plant, patched(ports.training.no_effect, "without_gradient", lambda real: lambda module: []))


def swapped(name: str, other: str) -> Plant:
    """Another attention under a name."""

    @contextmanager
    def plant(ground: Ground, size: float) -> Iterator[None]:
        functions = ALL_ATTENTION_FUNCTIONS._global_mapping
        own, ground.place = functions[name], f"attention {name}"
        AttentionInterface.register(name, functions[other])
        try:
            yield
        finally:
            AttentionInterface.register(name, own)

    return plant


def thawed(draft: Any) -> None:
    """Trained, says the draft, though nothing reaches it."""
    draft.embed_tokens.weight.requires_grad_(True)


def undetached(self: Any, hidden: Tensor, input_ids: Tensor, mask: Any, ttt_steps: int, *_: Any) -> list[Step]:
    """``HassDraftModel.unroll`` with the one ``detach`` of the recursion left out."""
    fuse, cache, steps = self.fusion(self.embed(input_ids)), ttt_cache(), list[Step]()
    for _step in range(ttt_steps):
        out = self.step(fuse, hidden, mask, cache)
        steps.append(Step(hidden, out, lambda out: self.lm_head(self.lm_head_layernorm(out))))
        hidden = next_hidden(hidden, out)
    return steps


def later_layers_cut_off(real: Callable[..., Any]) -> Callable[..., Any]:
    """Gradients stop at a second layer, which no recorded draft has."""

    def detached(layer: Any, hidden: Tensor, **context: Any) -> Any:
        return layer(hidden.detach(), **context)

    return lambda layers, *args, **named: real(
        [layers[0], *(partial(detached, layer) for layer in layers[1:])], *args, **named
    )


def normed_again(hidden: Tensor, *rest: Any) -> tuple[Any, ...]:
    return hidden / hidden.pow(2).mean(-1, keepdim=True).add(1e-5).sqrt(), *rest


def rounded_head(hidden: Tensor, head: Tensor, *rest: Any) -> tuple[Any, ...]:
    """To bfloat16, as the draft's own head is."""
    return hidden, head.bfloat16().float(), *rest


def coarse(levels: float, steps: list[Any]) -> None:
    """So many levels of mantissa: three bits are 8."""
    for step in steps:
        mantissa, exponent = torch.frexp(step.hidden.float())
        rounded = torch.ldexp((mantissa * levels).round() / levels, exponent)
        step.hidden = step.hidden + (rounded - step.hidden).detach()


def coarsened(ground: Ground, size: float) -> AbstractContextManager[object]:
    """Hidden states of every step, before the loss."""
    return giving(EAGLE3.objective, "unroll", partial(coarse, size))(ground, size)


def averaged(outcome: Any) -> Any:
    """Over three TTT steps, where the prototypes add up."""
    return replace(outcome, backward_loss=outcome.backward_loss / 3)


def one_more_hit(scores: Any) -> None:
    scores.hits.top[1] += 1


def one_more_row(scores: Any) -> None:
    scores.hits.rows += 1


def coarse_moments(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Through bfloat16 on their way to the file."""
    return {name: value if name[:4] == "step" else value.bfloat16().float() for name, value in state.items()}


def restarted(real: Callable[..., Any]) -> Callable[..., Any]:
    """The pass begins anew after a resume, although its totals and generators are the saved ones."""

    def batches(self: Any) -> Any:
        seen, self.totals.batches = self.totals.batches, 0
        left = real(self)
        self.totals.batches = seen
        return left

    return batches


def renumbered(content: bytes | None) -> bytes | None:
    return content and content.replace(b'{"step": 0', b'{"step": 1')


def off_by_one(tensors: dict[str, Tensor], _: str) -> None:
    tensors["d2t"] = tensors["d2t"] + 1


def spare(tensors: dict[str, Tensor], _: str) -> None:
    tensors["spare"] = torch.zeros(1)


def nothing(real: Any) -> Callable[..., None]:
    return lambda *args: None


def layers_off(config: Any) -> None:
    setattr(config, LAYERS, [2, 4, 5])


def unnormed_residual(config: Any) -> None:
    config.norm_before_residual = False


UNCHECKED = patched(LOOP, "_check_replay", nothing)
OF_BOTH = (
    Fault("rows miscounted in the mean", taking(OBJECTIVE, "mean_over", lambda total, rows: (total, rows + 1))),
    Fault("hits overcounted", giving(OBJECTIVE, "fused_scores", one_more_hit)),
    Fault("rows overcounted", giving(OBJECTIVE, "fused_scores", one_more_row)),
    Fault("a tensor too many in the file", saved(spare), named_by="round_trip"),
    Fault("generators not resumed", several(patched(LOOP, "put_back", nothing), UNCHECKED), named_by="resume"),
    Fault("Adam's moments saved in bfloat16", giving(MANAGER, "adam_state", coarse_moments), named_by="resume"),
    Fault("the sampler restarted", several(patched(LOOP, "_batches", restarted), UNCHECKED), named_by="resume"),
    Fault("the log renumbered", giving(RESUME, "_beginning", renumbered), named_by="resume"),
)
OF_EAGLE3 = (
    Fault("gradients averaged", giving(EAGLE3.objective.Eagle3Objective, "forward", averaged)),
    Fault("target normed twice", taking(EAGLE3.objective, "Verifier", normed_again)),
    Fault("target of a rounded head", taking(EAGLE3.objective, "Verifier", rounded_head)),
    Fault("hidden states too coarse", coarsened, (8.0, 4.0, 2.0, 1.0)),
    Fault("history detached", giving(EAGLE3.model, "next_hidden", Tensor.detach)),
    Fault("own-position keys off", swapped("ttt_prototype_auto", "ttt_chain_auto")),
    Fault("residual un-normed", in_config(unnormed_residual)),
    Fault("embedding thawed", unwatched(giving(EAGLE3.train, "build_draft", thawed))),
    Fault("d2t off by one in the file", saved(off_by_one), named_by="round_trip"),
    Fault("feature layers off by one", in_config(layers_off), named_by="round_trip"),
    Fault("chain keys at the own position", swapped("ttt_chain_auto", "ttt_prototype_auto"), named_by="chain"),
    Fault("later layers cut off", patched(EAGLE3.model, "run_layers", later_layers_cut_off), named_by="chain"),
)
OF_HASS = (
    Fault("gradients averaged", giving(HASS.objective.HassObjective, "forward", averaged)),
    Fault("history not detached", patched(HassDraftModel, "unroll", lambda real: undetached)),
    Fault("clipped by norm", patched(HASS.train, "clip_by_value", lambda real: EAGLE3.train.clip_by_norm)),
    Fault(
        "one more token proposed",
        taking(HASS.train, "load_draft_config", lambda path, verifier, k, *rest: (path, verifier, k + 1, *rest)),
        named_by="round_trip",
    ),
)


def in_half(reason: str) -> Callable[[RecordedCase], str | None]:
    """Why a fault may go unseen in half precision."""
    return lambda case: None if case.dtype == "fp32" else reason


UNSEEN = {
    "hits overcounted": in_half("rounding decides hits in half precision: they are counted in float32"),
    "chain keys at the own position": in_half("compared in float32"),
    "later layers cut off": in_half("compared in float32"),
    "embedding thawed": in_half("the first steps do not show which parameters the prototype trains"),
}
