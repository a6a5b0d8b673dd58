"""Run HASS' ``train/main_hass.py`` up to its first optimizer step on a case's first batch.

Shapes: B batch, T positions, h hidden size, V the verifier's vocabulary. Indices are the prototypes' positions.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

import accelerate
from torch import Tensor

from parity.prototypes.case import Case
from parity.prototypes.original.standins import force_full_precision, make_cuda_identity
from parity.prototypes.others import standins
from parity.prototypes.others.batch import first_files
from parity.prototypes.others.checkout import Other
from parity.prototypes.others.keep import Keep
from parity.prototypes.others.names import give_weights, gradients
from parity.prototypes.reference.loop import prepare

CONFIG = Path("draft.json")
TERMS = {"vloss": "smooth_l1", "ploss": "cross_entropy", "topk_loss": "topk", "total_loss": "loss"}
"""The script's names of the terms of one step's loss."""


def run(root: Path, other: Other, case: Case, keep: Keep) -> None:
    """Prepare the names the script reaches for, and let it train."""
    sys.path.insert(0, str(root / other.folder))
    standins.write_unscaled(case.configpath, CONFIG)
    keep.standin(standins.load_in_order(case.bs, [str(file) for file in first_files(case)]))
    for line in (make_cuda_identity(), standins.draw_no_noise(), standins.log_nowhere()):
        keep.standin(line)
    watch = Watch(case, keep)
    watch.accelerator()
    keep.standin(force_full_precision())
    drafts: Any = importlib.import_module("model.cnets_hass")
    configs: Any = importlib.import_module("model.configs")
    keep.facts["config_refusal"] = standins.refusal(configs.EConfig, case.configpath)
    watch.wrap(drafts)
    sys.argv = ["main_hass.py", *arguments(case)]
    try:
        runpy.run_path(str(root / other.folder / other.script), run_name="original")
    except standins.StepDoneError:
        watch.finish()


def arguments(case: Case) -> list[str]:
    """The script's command line; ``topk_w`` keeps the script's own default."""
    flags = {
        "basepath": case.verifier,
        "configpath": CONFIG,
        "tmpdir": case.tmpdir,
        "cpdir": "saved",
        "lr": case.lr,
        "bs": case.bs,
        "epoch": 0,
        "topk": case.topk,
        "forward_num_total": case.ttt_steps,
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


class Watch:
    """Hears what the draft and the script compute."""

    def __init__(self, case: Case, keep: Keep) -> None:
        self.case, self.keep, self.step = case, keep, 0
        self.model: Any = None

    def wrap(self, drafts: Any) -> None:
        """Let the script build its model through us."""
        construct, setup = drafts.Model, prepare(self.case)

        def build(config: Any, **named: Any) -> Any:
            self.model = construct(standins.config_of_old(CONFIG, config), **named)
            give_weights("hass", self.model, {**setup.masters, **setup.frozen}, self.case.initial)
            self.keep.facts["rope_base"] = self.model.layers[0].self_attn.rotary_emb.base
            return self.model

        drafts.Model = build

    def accelerator(self) -> None:
        """Backward and clipping are heard; at the first clipping everything is known."""
        watch = self

        class Heard(accelerate.Accelerator):
            def backward(self, loss: Tensor, **named: Any) -> None:
                watch.backward(sys._getframe(1).f_globals)
                super().backward(loss, **named)

            def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
                watch.keep.facts["clip_value"] = clip_value
                raise standins.StepDoneError

        accelerate.Accelerator = Heard
        self.keep.standin("Accelerator.backward and clip_grad_value_ heard")

    def backward(self, names: dict[str, Any]) -> None:
        """One step's backward is about to run; ``names`` are the script's globals."""
        self.keep.tensor(f"step{self.step}.hidden", names["predict"])
        self.keep.tensor(f"step{self.step}.logits", names["out_head"])
        for name, term in TERMS.items():
            self.keep.tensor(f"step{self.step}.{term}", names[name])
        self.keep.tensor("loss", names["loss"] / self.case.ttt_steps)
        self.keep.facts["train_config"] = dict(names["train_config"])
        self.step += 1

    def finish(self) -> None:
        """The gradients of all steps together."""
        for name, value in gradients("hass", self.model).items():
            self.keep.tensor(f"grad.{name}", value)
