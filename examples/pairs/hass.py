"""HASS' own training script, ``train/main_hass.py``, against the HASS prototype's formulas: where they differ, and why.

    parity run examples/pairs/hass.py:HASS [--original DIR]
    parity record examples/pairs/hass.py:HASS --original DIR --output FOLDER

``DIR`` is a checkout of HArmonizedSS/HASS. Shapes: B batch, T positions, h hidden size, V the verifier's vocabulary.
"""

from __future__ import annotations

import ports  # noqa: F401  # isort: skip  (a torchaudio of another build must not break transformers)

import importlib
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import accelerate
import torch
import training_script as scripts
from torch import Tensor

from parity.prototypes.reference import drafts as reference
from parity.prototypes.reference.attention import ttt_scores, ttt_values
from parity.prototypes.reference.data import load_sample, make_batch
from parity.prototypes.reference.drafts import log_softmax, masked_mean

SCRIPT = scripts.Script(
    name="HASS",
    repository="HArmonizedSS/HASS",
    commit="38922e43fec95f0bd2993f33aaa6ee82371741a5",
    folder=".",
    file="train/main_hass.py",
    hashes={
        "train/__init__.py": scripts.EMPTY,
        "train/main_hass.py": "5e357f6496073293714763cbbb6038ee148c94975108fbd406efdceebb715b89",
        "model/__init__.py": scripts.EMPTY,
        "model/cnets_hass.py": "49bd39872daa312396d8d5989654420163a75d50815afeda5f850c553ea68588",
        "model/configs.py": "14ae62877cd9ab12c9076fc70fe940714b9ca980865b00ba974de340df2d1ac5",
        "model/utils_c.py": "fa7bee5ea870200756bd48bb27c1dbfb2e8f1d42f4e9c832d6b5d1681ca97f58",
        "model/choices.py": "5ab95137f63b61f756057927b2af427ffa0bc351384d99e334a9da853fcbfa7e",
    },
)
TEXTS = {
    "embed-norm": "no norm on the token's embedding",
    "hidden-norm": "no norm on the hidden state before `fc`",
    "head-norm": "no norm before the verifier's head",
    "fc-bias": "`fc` has a bias; it starts as zeros here",
    "chain-keys": "keys and values of earlier steps are read where the chain has them (`own-position-kv`)",
    "unmasked-softmax": "positions after the row, padding too, are scored 0 instead of minus infinity: they take their "
    "share of the softmax, and are left out of the sum only after it",
    "rope": "the draft config's rotary scaling is refused; base and head size are kept",
    "cross-entropy": "the loss of a row is the cross-entropy; the verifier's entropy is not taken off",
    "p_w": "the cross-entropy is weighed with `p_w`",
    "smooth-l1": "smooth L1 between the hidden state and the verifier's is added, weighed with `v_w`",
    "topk": "the cross-entropy over the likeliest `--topk` tokens is added, weighed with `topk_w`",
}
P_W, V_W, TOPK_W = 0.1, 1.0, 1.0
"""The script's weights of the loss' terms."""

NORMS = {"embed_layernorm": "embed-norm", "hidden_layernorm": "hidden-norm", "lm_head_layernorm": "head-norm"}
"""Norms of the prototype that HASS has not, each with its known difference."""

CASES = (scripts.first_batch("hass_fp32_k3"),)


class HassLayer(reference.HassLayer):
    """The prototype's layer with known differences in."""

    known: frozenset[str] = frozenset()

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x if NORMS.get(name) in self.known_differences else super().norm(x, name)

    def attend(self, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        if "unmasked-softmax" not in self.known_differences:
            return super().attend(query, keys, values)
        before = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).tril()
        weights = torch.softmax(ttt_scores(query, keys, self.own_position) * before, dim=-1) * before
        return ttt_values(weights, values, self.own_position)


def formulas(case: scripts.FirstBatch, known: frozenset[str]) -> scripts.Tensors:
    """The prototype's first batch with the given known differences in."""
    setup, batch = case.setup(), make_batch([load_sample(file, None) for file in case.files])
    weights = setup.weights()
    if "fc-bias" in known:
        weights["fc.bias"] = torch.zeros(len(weights["fc.weight"]), requires_grad=True)
    setup.config |= {"rope_scaling": None} if "rope" in known else {}
    with patch.object(reference, "HassLayer", type("Changed", (HassLayer,), {"known_differences": known})):
        unrolled = setup.forward(weights, batch, own_position="chain-keys" not in known)
    hidden, logits = [step.hidden for step in unrolled.steps], [step.logits for step in unrolled.steps]
    losses = [step_loss(*step, unrolled.target_p, batch, case.source.topk, known) for step in zip(hidden, logits)]
    for loss in losses:
        loss.backward()
    found = scripts.of_steps(batch, hidden, logits, losses, torch.stack(losses).mean())
    return found | scripts.gradients(weights)


def step_loss(
    hidden: Tensor, logits: Tensor, target_p: Tensor, batch: Mapping[str, Tensor], topk: int, known: frozenset[str]
) -> Tensor:
    """The loss of one step, a sum of the terms that are in."""
    mask, terms = batch["loss_mask"], -target_p * log_softmax(logits)
    entropy = 0.0 if "cross-entropy" in known else torch.special.xlogy(target_p, target_p)
    loss = (P_W if "p_w" in known else 1.0) * masked_mean((entropy + terms).sum(-1), mask)
    if "smooth-l1" in known:
        distance = torch.nn.functional.smooth_l1_loss(hidden, batch["target"], reduction="none").mean(-1)
        loss = loss + V_W * masked_mean(distance, mask)
    if "topk" in known:
        likeliest = terms.gather(-1, target_p.topk(topk, dim=-1).indices).sum(-1)
        loss = loss + TOPK_W * masked_mean(likeliest, mask)
    return loss


def run(case: scripts.FirstBatch, root: Path, heard: scripts.Heard) -> None:
    """Let the script train up to its first clipping, and hear what it computes."""
    scripts.arrange(heard, case.source.bs, case.files)
    torch.rand_like = lambda tensor, **_: torch.full_like(tensor, 0.5)  # type: ignore[assignment]
    heard.arranged("torch.rand_like = 1/2: no noise")
    accelerate.Accelerator = listening(heard)  # type: ignore[misc]
    heard.arranged("accelerate.Accelerator(mixed_precision='no'), backward and clip_grad_value_ heard")
    drafts, configs = (importlib.import_module(f"model.{name}") for name in ("cnets_hass", "configs"))
    heard.settings["config_refusal"] = scripts.complaint(configs.EConfig.from_pretrained, str(case.source.configpath))
    construct, of_old, models = drafts.Model, scripts.unscaled(case, "draft.json"), []

    def build(config: Any, **named: Any) -> Any:
        models.append(construct(of_old(config), **named))
        setup = case.setup()
        whole = {**setup.masters, **setup.frozen}
        weights = {name: value for name, value in whole.items() if name.removesuffix(".weight") not in NORMS}
        scripts.give_weights(models[0], weights, ["fc.bias"])
        heard.settings["rope_base"] = models[0].layers[0].self_attn.rotary_emb.base
        return models[0]

    drafts.Model = build  # type: ignore[attr-defined]
    flags = {
        "basepath": case.source.verifier,
        "configpath": "draft.json",
        "tmpdir": case.source.tmpdir,
        "cpdir": "saved",
    }
    flags |= {"lr": case.source.lr, "bs": case.source.bs, "epoch": 0, "topk": case.source.topk}
    flags |= {"forward_num_total": case.source.ttt_steps}
    sys.argv = [SCRIPT.file, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]
    try:
        runpy.run_path(str(SCRIPT.place(root) / SCRIPT.file), run_name="original")
    except scripts.StepDoneError:
        heard.tensors |= scripts.gradients(dict(models[0].named_parameters()))


def listening(heard: scripts.Heard) -> Any:
    """An Accelerator in full precision; what the script's globals hold at each step's backward is kept."""

    class Listening(accelerate.Accelerator):
        def __init__(self, **named: Any) -> None:
            super().__init__(**{**named, "mixed_precision": "no"})

        def backward(self, loss: Tensor, **named: Any) -> None:
            script = sys._getframe(1).f_globals
            for name, what in {"predict": "hidden", "out_head": "logits", "total_loss": "loss"}.items():
                heard.next_step(what, script[name])
            heard.tensor("loss", script["loss"] / script["args"].forward_num_total)
            heard.tensor("batch.attention_mask", script["attention_mask"])
            heard.settings["train_config"] = {**script["train_config"], "datapath": "the case's"}
            super().backward(loss, **named)

        def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
            heard.settings["clip_value"] = clip_value
            raise scripts.StepDoneError

    return Listening


VIEWS = [scripts.view("mb0.step*.hidden"), scripts.view("mb0.step*.logits")]
HASS = scripts.pair("hass", scripts.Formulas(formulas), CASES, TEXTS, __file__, SCRIPT, VIEWS)

if __name__ == "__main__":
    scripts.answer(run, SCRIPT, CASES)
