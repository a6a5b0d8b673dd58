"""EAGLE's own training script, ``traineagle3/main.py``, against the Eagle3 prototype's formulas, and Speculators'.

    parity run examples/pairs/eagle.py:EAGLE [--original DIR]
    parity run examples/pairs/eagle.py:SPECULATORS [--original DIR]
    parity record examples/pairs/eagle.py:EAGLE --original DIR --output FOLDER

``DIR`` is a checkout of SafeAILab/EAGLE. Shapes: B batch, T positions, h hidden size, V the verifier's vocabulary, D
the draft's. At TTT step s EAGLE's index q is the prototypes' position p = q + s: it moves ids, target and mask to the
left instead of the states to the right. So does Speculators.
"""

from __future__ import annotations

import ports  # noqa: F401  # isort: skip  (a torchaudio of another build must not break transformers)

import argparse
import copy
import importlib
import json
import runpy
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import training_script as scripts
from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from parity.environment import quietly
from parity.prototypes.original.standins import TorchProxy
from parity.prototypes.port import load_initial, settings_for
from parity.prototypes.reference import drafts as reference
from parity.prototypes.reference.data import load_sample, make_batch
from parity.prototypes.reference.drafts import log_softmax
from parity.prototypes.reference.layer import Entry
from ports.eagle3 import train
from ports.training.online import chosen_layers

SCRIPT = scripts.Script(
    name="EAGLE",
    repository="SafeAILab/EAGLE",
    commit="cb7e0841fe0c206c6ed74a197ad5e2a1f13f5a2b",
    folder="eagle/traineagle3",
    file="main.py",
    hashes={
        "main.py": "439c4d8de398c8876f72806d7ba7e6436b5127a4751f3491505a3f51412a4eeb",
        "cnets.py": "71295b56d8bd5648a1c630af0995f6a23a13671c8e60fe92636fffd9ee786a9c",
        "configs.py": "14ae62877cd9ab12c9076fc70fe940714b9ca980865b00ba974de340df2d1ac5",
        "modeling_llama_kv.py": "18adff2c21e659755eb41d6804fa6dd4b4d486b70d3c749693fbb44cff3855b5",
        "ds_config.json": "02b432995b51d8fa1cce7685b7430de7ce14de0419a6729cd9ff0c324c1bec0b",
    },
)
LOSS_TEXTS = {
    "cross-entropy": "the loss of a row is the cross-entropy; the verifier's entropy is not taken off",
    "mean-over-positions": "a step's loss is divided by all positions, padding too, not by the rows in the loss",
    "vocabulary-rows": "rows whose likeliest token is not in the draft's vocabulary are left out",
    "step-weights": "the total weighs later steps less, see the settings below",
}
TEXTS = {
    "feature-layers": "features are the entries 2, n // 2 and n - 3 of the verifier's states, one layer earlier each",
    "residual": "the residual stream starts at the hidden state itself, not at the normed one",
    "chain-keys": "keys and values of earlier steps are read where the chain has them (`own-position-kv`)",
    "rope": "rotary frequencies have a fixed base and no scaling, whatever the draft config says",
    "leading-rows": "positions p < s are not there: ids and targets move to the left, the states stay",
    "last-row": "the mask of the last position is not switched off",
    **LOSS_TEXTS,
}
OF_SPECULATORS = {
    "residual": "the residual stream starts at the hidden state itself; Speculators' `norm_before_residual` off",
    "rope": TEXTS["rope"],
    "mask": "the loss mask is l[p], the last position included, not l[p + 1]",
    "head": "the draft's head is trained; Speculators freezes it",
    **LOSS_TEXTS,
}
UNSCALED = {"rope_theta": 10000.0, "rope_scaling": None}
"""EAGLE's rotary frequencies."""

STEP_WEIGHT = 0.8
"""EAGLE weighs the loss of step s with this to the power of s."""

CASES = scripts.first_batch("eagle3_fp32_k3"), scripts.first_batch("eagle3_fp32_k3", every_row=True)
ONE = (scripts.first_batch("eagle3_fp32_k3_bs1"),)
"""Speculators packs samples: one alone is the same to both."""


def left(values: Tensor) -> Tensor:
    """[B, T, ...] moved to the left by one."""
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)


def batch_of(case: scripts.FirstBatch) -> scripts.Tensors:
    """Shifted as the prototypes shift; besides ``target_logits`` [B, T, V] and ``raw_mask`` [B, T], as samples have it.

    ``loss_mask`` has the last position of every sample off.
    """
    batch = make_batch([load_sample(file, None) for file in case.files])
    raw = scripts.padded(case.samples(), "loss_mask")
    batch |= {"raw_mask": raw, "loss_mask": raw * left(batch["attention_mask"])}
    return {**batch, "target_logits": batch["target"] @ case.setup().head.T}


class RawResidual(reference.Eagle3Layer):
    """The prototype's layer with the residual from before the norm."""

    def enter(self, hidden: Tensor) -> Entry:
        return replace(super().enter(hidden), residual=hidden)


def formulas(case: scripts.FirstBatch, known: frozenset[str]) -> scripts.Tensors:
    """The prototype's first batch with the given known differences in."""
    setup, batch = case.setup(), batch_of(case)
    weights = setup.weights()
    setup.config |= UNSCALED if "rope" in known else {}
    layer = RawResidual if "residual" in known else reference.Eagle3Layer
    with patch.object(reference, "Eagle3Layer", layer):
        steps = setup.forward(weights, batch, own_position="chain-keys" not in known).steps
    hidden, logits = [step.hidden for step in steps], [step.logits for step in steps]
    mask = batch["raw_mask" if "last-row" in known else "loss_mask"]
    losses = step_losses(logits, batch["target_logits"], setup.t2d, mask, known, "leading-rows" not in known)
    total = total_loss(losses, known)
    total.backward()
    found = scripts.of_steps(batch, hidden, logits, losses, total) | scripts.gradients(weights)
    return found | {"mb0.features": features_of(case, "speculators" if "feature-layers" in known else "prototype")}


def step_losses(
    logits: Sequence[Tensor], target_logits: Tensor, t2d: Tensor, mask: Tensor, known: frozenset[str], leading: bool
) -> list[Tensor]:
    """The loss of every step from logits [B, T, D] at the prototypes' positions; ``leading``: p < s are trained too."""
    target = torch.softmax(target_logits[..., t2d], dim=-1)
    rows = mask.bool() & t2d[target_logits.argmax(-1)] if "vocabulary-rows" in known else mask.bool()
    entropy = 0.0 if "cross-entropy" in known else torch.special.xlogy(target, target)
    losses = []
    for step, values in enumerate(logits):
        counted = rows.clone()
        counted[:, : 0 if leading else step] = False
        per_row = (entropy - target * log_softmax(values)).sum(-1)
        size = float(mask.numel()) if "mean-over-positions" in known else counted.sum() + 1e-5
        losses.append((per_row * counted).sum() / size)
    return losses


def total_loss(losses: Sequence[Tensor], known: frozenset[str]) -> Tensor:
    """What gets a backward."""
    weight = STEP_WEIGHT if "step-weights" in known else 1.0
    return torch.stack([weight**step * loss for step, loss in enumerate(losses)]).sum()


def features_of(case: scripts.FirstBatch, rule: str) -> Tensor:
    """[B, T, 3h]: states of transformers' verifier, from the layers that a rule names."""
    verifier, real = case.source.verifier, batch_of(case)["attention_mask"]
    with quietly(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(verifier, dtype=torch.float32)
        ids = scripts.padded(case.samples(), "input_ids")
        states = model(input_ids=ids, attention_mask=real, output_hidden_states=True).hidden_states
    layers = chosen_layers(rule, str(verifier), len(states) - 1)
    return torch.cat([states[layer] for layer in layers], dim=-1)


def speculators(case: scripts.FirstBatch, known: frozenset[str]) -> scripts.Tensors:
    """Speculators' own forward on the sample with the given differences in; without any, the loss is its own."""
    draft, batch = draft_of(case, known), batch_of(case)
    hidden: list[Tensor] = []
    logits: list[Tensor] = []
    draft.layers[-1].register_forward_hook(lambda _, __, out: hidden.append(out[0] if isinstance(out, tuple) else out))
    draft.lm_head.register_forward_hook(lambda _, __, out: logits.append(out))
    next_mask = left(batch["loss_mask"])
    _, own, _ = draft(
        hidden_states=batch["hidden_states"],
        input_ids=batch["input_ids"],
        document_ids=torch.zeros_like(batch["input_ids"]),
        loss_mask=next_mask.bool(),
        verifier_last_hidden_states=batch["target"],
        ttt_steps=case.source.ttt_steps,
        loss_config=resolve_loss_config("kl_div", "eager"),
    )
    hidden, logits = ([value.roll(s, 1) for s, value in enumerate(values)] for values in (hidden, logits))
    mask = batch["raw_mask"] if "mask" in known else next_mask
    losses = step_losses(logits, batch["target_logits"], draft.t2d, mask, known, leading=False)
    total = total_loss(losses, known) if known else own
    total.backward()
    found = scripts.of_steps(batch, hidden, logits, losses, total) | scripts.gradients(dict(draft.named_parameters()))
    return found | {"mb0.features": features_of(case, "speculators")}


def draft_of(case: scripts.FirstBatch, known: frozenset[str]) -> Any:
    """Speculators' model on the case's initial weights. The files hold post-norm targets: its norm is an identity."""
    with tempfile.TemporaryDirectory() as folder, quietly():
        file = Path(folder) / "draft.json"
        changed = UNSCALED if "rope" in known else {}
        file.write_text(json.dumps({**json.loads(case.source.configpath.read_text()), **changed}))
        settings: Any = settings_for(case.source, Path(folder) / "checkpoints", configpath=str(file))
        ours = train.build(settings)
    load_initial(ours, case.source)
    config = copy.deepcopy(ours.config)
    config.transformer_layer_config._attn_implementation = "sdpa"  # eager sees wrong keys in Speculators 0.8.1
    config.norm_before_residual = "residual" not in known
    draft = Eagle3DraftModel(config)
    draft.load_state_dict(ours.state_dict(), strict=False)
    draft.verifier_norm = nn.Identity()
    draft.lm_head.requires_grad_("head" in known)
    return draft


def run(case: scripts.FirstBatch, root: Path, heard: scripts.Heard) -> None:
    """Let the script train up to its first optimizer step, and hear what it computes."""
    t2d, samples = case.setup().t2d, case.samples()
    of_old = scripts.unscaled(case, "config.json")
    torch.save({"t2d": t2d, "d2t": torch.zeros(int(t2d.sum()), dtype=torch.int64)}, "cache.pt")
    scripts.arrange(heard, case.source.bs)
    feed(samples, heard)
    importlib.import_module("modeling_llama_kv")
    drafts, configs = importlib.import_module("cnets"), importlib.import_module("configs")
    drafts.torch = TorchProxy(float16=torch.float32)  # type: ignore[attr-defined]
    heard.arranged("the verifier in float32 instead of float16")
    heard.settings["config_refusal"] = scripts.complaint(configs.EConfig.from_pretrained, str(case.source.configpath))
    construct, models = drafts.Model, []

    def build(config: Any, ds_config: Any, training_config: Any, **named: Any) -> Any:
        heard.settings["unmodified"] = scripts.complaint(construct, of_old(config), ds_config, training_config, **named)
        settings = SimpleNamespace(gradient_checkpointing=False, max_len=training_config["max_len"])
        heard.arranged("its settings as an object with gradient_checkpointing = False instead of a dict")
        models.append(construct(config, ds_config, settings, **named))
        listen(models[0], case, samples, heard)
        return models[0]

    drafts.Model = build  # type: ignore[attr-defined]
    stand_in_for_deepspeed(heard)
    sys.argv = [SCRIPT.file, "--basepath", str(case.source.verifier), "--savedir", "saved"]
    sys.argv += ["--deepspeed_config", str(SCRIPT.place(root) / "ds_config.json")]
    try:
        runpy.run_path(str(SCRIPT.place(root) / SCRIPT.file), run_name="original")
    except scripts.StepDoneError as done:
        tensors = {**heard.tensors, **scripts.gradients(dict(models[0].named_parameters()))}
        heard.settings["without gradient when checkpointed"] = lost(models[0], done.args[0])
        heard.tensors = tensors


def feed(samples: Sequence[scripts.Tensors], heard: scripts.Heard) -> None:
    """The case's samples in the place of conversations, and no tokenizer."""
    items = [{name: sample[name][None] for name in ("input_ids", "loss_mask")} for sample in samples]

    class Rows(list[Any]):
        column_names = ()
        shuffle = map = lambda self, *_, **__: self
        set_format = shuffle

    rows = Rows({**item, "attention_mask": torch.ones_like(item["input_ids"])} for item in items)
    importlib.import_module("datasets").load_dataset = lambda *_, **__: {"train": rows}  # type: ignore[attr-defined]
    transformers: Any = importlib.import_module("transformers")
    transformers.AutoTokenizer = SimpleNamespace(from_pretrained=lambda _: None)
    heard.arranged("tokenized samples of the case in place of conversations")


def listen(model: Any, case: scripts.FirstBatch, samples: Sequence[scripts.Tensors], heard: scripts.Heard) -> None:
    """Start the draft as the prototype's; keep what EAGLE's verifier says, and put the case's own in its place."""
    setup, ids = case.setup(), scripts.padded(samples, "input_ids")
    weights = {**setup.masters, **setup.frozen}
    scripts.give_weights(model, {name.replace("layers.0.", "midlayer.", 1): value for name, value in weights.items()})
    for module in model.target_model.modules():
        if hasattr(module, "rope_init_fn"):
            frequencies = module.rope_init_fn(module.config, torch.device("cpu"))[0]
            module.register_buffer("inv_freq", frequencies, persistent=False)
    heard.arranged("the verifier's rotary frequencies computed again after loading")
    real = nn.utils.rnn.pad_sequence([torch.ones_like(sample["input_ids"]) for sample in samples], batch_first=True)
    with torch.no_grad():
        heard.tensor("features", torch.cat(model.target_model(ids, attention_mask=real).hidden_states, dim=-1))
    states, target = (scripts.padded(samples, name) for name in ("hidden_state", "target"))
    answer = SimpleNamespace(hidden_states=states.chunk(3, dim=-1), logits=target @ setup.head.T)
    del model.target_model
    model.target_model = lambda **_: answer
    heard.arranged("the case's features and targets in place of what its verifier computes")
    heard.settings |= {"length": model.length, "rope_base": model.midlayer.self_attn.rotary_emb.base}
    model.length = case.source.ttt_steps
    heard.arranged(f"length = {model.length}, the case's TTT steps")
    model.midlayer.register_forward_hook(lambda _module, _inputs, out: heard.next_step("hidden", out[0][0]))
    model.lm_head.register_forward_hook(lambda _module, _inputs, out: heard.next_step("logits", out))


def stand_in_for_deepspeed(heard: scripts.Heard) -> None:
    """One process, float32; what the script's globals hold at the backward is kept."""

    def backward(loss: Tensor) -> None:
        script = sys._getframe(1).f_globals
        for value in script["plosses"]:
            heard.next_step("loss", value)
        heard.tensor("loss", loss)
        heard.tensor("batch.attention_mask", script["data"]["attention_mask"])
        heard.settings |= {name: copy.deepcopy(script[name]) for name in ("ploss_weight", "ds_config", "train_config")}
        loss.backward()

    def step() -> None:
        raise scripts.StepDoneError(sys._getframe(1).f_globals)

    def initialize(model: Any, **_: Any) -> tuple[Any, None, None, None]:
        model.backward, model.step = backward, step
        return model, None, None, None

    def add_config_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser.add_argument("--deepspeed_config")
        return parser

    module: Any = ModuleType("deepspeed")
    module.add_config_arguments, module.initialize = add_config_arguments, initialize
    module.comm = SimpleNamespace(
        get_rank=lambda: 0, get_local_rank=lambda: torch.device("cpu"), get_world_size=lambda: 1
    )
    sys.modules["deepspeed"] = module
    heard.arranged("deepspeed = one process, float32, no sharding")


def lost(model: Any, script: dict[str, Any]) -> list[str]:
    """Parameters that get no gradient in a step with the activation checkpointing that the script asks for."""
    before = {name for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing = True
    losses, _, _ = model(**script["data"])
    torch.stack([weight * loss for weight, loss in zip(script["ploss_weight"], losses)]).sum().backward()
    return sorted(before - {name for name, value in model.named_parameters() if value.grad is not None})


STATES = [scripts.view(f"mb0.step{s}.{what}", shift=s) for s in range(3) for what in ("hidden", "logits")]
VIEWS, NAMES = [*STATES, scripts.view("mb0.features")], {"midlayer": "layers.0"}
LIBRARY = scripts.Formulas(speculators, "speculators")
EAGLE = scripts.pair("eagle", scripts.Formulas(formulas), CASES, TEXTS, __file__, SCRIPT, VIEWS, NAMES)
SPECULATORS = scripts.pair("eagle-speculators", LIBRARY, ONE, OF_SPECULATORS, __file__, SCRIPT, VIEWS, NAMES)

if __name__ == "__main__":
    scripts.answer(run, SCRIPT, (*CASES, *ONE))
