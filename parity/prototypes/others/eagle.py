"""Run EAGLE's ``traineagle3/main.py`` up to its first optimizer step on a case's first batch.

Shapes: B batch, T positions, h hidden size, V the verifier's vocabulary. At TTT step s its index q is the prototypes'
position p = q + s: it moves ids, target and mask to the left instead of the states to the right.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from parity.prototypes.case import Case
from parity.prototypes.original.standins import TorchProxy, make_cuda_identity
from parity.prototypes.others import standins
from parity.prototypes.others.batch import first_samples, padded
from parity.prototypes.others.checkout import Other
from parity.prototypes.others.keep import Keep
from parity.prototypes.others.names import give_weights, gradients
from parity.prototypes.reference.loop import Setup, prepare

CONFIG = Path("config.json")
"""The script reads the draft config by this name from the working directory."""


class Verifier(nn.Module):
    """In place of the verifier it loads: the features and logits the case holds for these samples."""

    def __init__(self, features: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.outputs = SimpleNamespace(hidden_states=features.chunk(3, dim=-1), logits=logits)

    def forward(self, **_: Tensor) -> SimpleNamespace:
        return self.outputs


def run(root: Path, other: Other, case: Case, keep: Keep) -> None:
    """Prepare the working directory and the names it reaches for, and let the script train."""
    samples, setup = first_samples(case), prepare(case)
    sys.path.insert(0, str(root / other.folder))
    standins.write_unscaled(case.configpath, CONFIG)
    torch.save({"t2d": setup.t2d, "d2t": torch.zeros(int(setup.t2d.sum()), dtype=torch.int64)}, "cache.pt")
    watch = Watch(case, setup, samples, keep)
    for line in (make_cuda_identity(), standins.load_in_order(case.bs), standins.log_nowhere()):
        keep.standin(line)
    keep.standin(standins.deepspeed_without_it(watch.backward))
    keep.standin(feed(samples))
    importlib.import_module("modeling_llama_kv")
    drafts: Any = importlib.import_module("cnets")
    keep.facts["config_refusal"] = standins.refusal(importlib.import_module("configs").EConfig, case.configpath)
    drafts.torch = TorchProxy(float16=torch.float32)
    keep.standin("the verifier in float32 instead of float16")
    watch.wrap(drafts)
    sys.argv = ["main.py", "--basepath", str(case.verifier), "--savedir", "saved"]
    sys.argv += ["--deepspeed_config", str(root / other.folder / "ds_config.json")]
    try:
        runpy.run_path(str(root / other.folder / other.script), run_name="original")
    except standins.StepDoneError:
        watch.finish()


def feed(samples: list[dict[str, Tensor]]) -> str:
    """The case's samples in place of conversations, and no tokenizer."""
    datasets: Any = importlib.import_module("datasets")
    transformers: Any = importlib.import_module("transformers")
    items = [{name: sample[name][None] for name in ("input_ids", "loss_mask")} for sample in samples]
    rows = standins.Rows([{**item, "attention_mask": torch.ones_like(item["input_ids"])} for item in items])
    datasets.load_dataset = lambda *_, **__: {"train": rows}
    transformers.AutoTokenizer = SimpleNamespace(from_pretrained=lambda _: None)
    return "tokenized samples of the case in place of conversations"


class Watch:
    """Hears what the draft and the script compute."""

    def __init__(self, case: Case, setup: Setup, samples: list[dict[str, Tensor]], keep: Keep) -> None:
        self.case, self.setup, self.samples, self.keep = case, setup, samples, keep
        self.model: Any = None
        self.batch: dict[str, Tensor] = {}
        self.steps = {"hidden": 0, "logits": 0}

    def wrap(self, drafts: Any) -> None:
        """Let the script build its model through us."""
        construct = drafts.Model

        def build(config: Any, ds_config: Any, training_config: Any, **named: Any) -> Any:
            config = standins.config_of_old(CONFIG, config)
            self.keep.facts["unmodified"] = complaint(construct, config, ds_config, training_config, **named)
            settings = SimpleNamespace(gradient_checkpointing=False, max_len=training_config["max_len"])
            self.model = construct(config, ds_config, settings, **named)
            self._start(self.model)
            return self.model

        drafts.Model = build
        self.keep.standin("its settings as an object with gradient_checkpointing = False instead of a dict")

    def _start(self, model: Any) -> None:
        give_weights("eagle", model, {**self.setup.masters, **self.setup.frozen}, self.case.initial)
        self._own_verifier(model)
        self.keep.facts |= {"length": model.length, "rope_base": model.midlayer.self_attn.rotary_emb.base}
        model.length = self.case.ttt_steps
        self.keep.standin(f"length = {self.case.ttt_steps}, the case's TTT steps")
        logits = padded(self.samples, "target") @ self.setup.head.T
        model.target_model = Verifier(padded(self.samples, "hidden_state"), logits)
        self.keep.standin("the case's features and targets in place of what its verifier computes")
        model.midlayer.register_forward_hook(lambda _module, _inputs, output: self._heard("hidden", output[0][0]))
        model.lm_head.register_forward_hook(lambda _module, _inputs, output: self._heard("logits", output))

    def _own_verifier(self, model: Any) -> None:
        """What its own verifier says to the samples: features [B, T, 3h] and logits [B, T, V]."""
        self.keep.standin(standins.fill_frequencies(model.target_model))
        ids = padded(self.samples, "input_ids")
        real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s["input_ids"]) for s in self.samples], True)
        with torch.no_grad():
            seen = model.target_model(input_ids=ids, attention_mask=real)
        self.keep.tensor("own.features", torch.cat(list(seen.hidden_states), dim=-1))
        self.keep.tensor("own.logits", seen.logits)

    def _heard(self, what: str, value: Tensor) -> None:
        self.keep.tensor(f"step{self.steps[what]}.{what}", value)
        self.steps[what] += 1

    def backward(self, loss: Tensor, names: dict[str, Any]) -> None:
        """The script is about to call the backward; ``names`` are its globals."""
        for step, value in enumerate(names["plosses"]):
            self.keep.tensor(f"step{step}.loss", value)
        self.keep.tensor("loss", loss)
        self.keep.facts |= {"step_weights": list(names["ploss_weight"]), "ds_config": names["ds_config"]}
        self.keep.facts["train_config"] = dict(names["train_config"])
        self.batch = dict(names["data"])

    def finish(self) -> None:
        """The gradients at the first optimizer step, and how a step with activation checkpointing ends."""
        for name, value in gradients("eagle", self.model).items():
            self.keep.tensor(f"grad.{name}", value)
        facts, plain, self.keep = self.keep.facts, gradients("eagle", self.model), Keep()
        facts["checkpointed"] = complaint(self._checkpointed, facts["step_weights"])
        facts["checkpointed_lacks"] = sorted(set(plain) - set(gradients("eagle", self.model)))

    def _checkpointed(self, weights: list[float]) -> None:
        """The step again with the activation checkpointing that the script asks for."""
        self.model.zero_grad()
        self.model.gradient_checkpointing = True
        losses, _, _ = self.model(**self.batch)
        torch.stack([weight * loss for weight, loss in zip(weights, losses)]).sum().backward()


def complaint(construct: Any, *arguments: Any, **named: Any) -> str:
    """How the call ends with the script's own arguments; empty if well."""
    try:
        construct(*arguments, **named)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
