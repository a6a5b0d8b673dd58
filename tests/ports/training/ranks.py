"""Runs of the trainers in one process of several: ``torchrun ... -m tests.ports.training.ranks runs.json``.

Reads a JSON list of runs, each with its ``algorithm``, its command line ``words`` and whether to keep the first step's
``gradients``, and makes one after the other, so that the imports are paid for once. Of a run that must be ``refused``
every process writes down the words; in one with ``overflow`` the last one's gradients of that micro-batch are infinite.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, set_seed
from safetensors.torch import save_file

from ports.errors import InputError
from ports.flags import parse
from ports.training.observer import Observer
from ports.training.shards import full_tensor
from tests.ports.conftest import TRAIN


class Gradients(Observer):
    """Writes the gradients of the first optimizer step, in full."""

    def __init__(self, file):
        self.file = file
        self.kept = {}

    def gradients(self, micro_batch, objective):
        named = objective.draft.named_parameters()
        self.kept = {name: full_tensor(value.grad).clone() for name, value in named if value.grad is not None}

    def stepped(self, record, objective):
        if record.stepped and not self.file.exists():
            save_file(self.kept, self.file)


class Overflow(Observer):
    """In the backward of one micro-batch, whose loss is finite."""

    def __init__(self, micro_batch):
        self.micro_batch = micro_batch

    def outcome(self, micro_batch, outcome):
        if micro_batch == self.micro_batch and os.environ["RANK"] == "1":
            outcome.backward_loss.register_hook(lambda gradient: gradient * torch.inf)


def fresh_state():
    """Accelerate's state as a launcher leaves it.

    FSDP and DeepSpeed are for accelerators, says accelerate, and makes plain DDP of either on a CPU; as far as it is
    asked here, the processes have some. All that follows is FSDP2 as torch has it, and DeepSpeed's own, on gloo.
    """
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    PartialState(cpu=True)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        os.environ.pop("ACCELERATE_USE_CPU", None)
    if os.environ.get("ACCELERATE_USE_FSDP"):
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def gradients_file(cpdir, rank):
    return cpdir.parent / f"{cpdir.name}_grads_{rank}.safetensors"


def refused_file(cpdir, rank):
    return cpdir.parent / f"{cpdir.name}_refused_{rank}.txt"


def run(algorithm, words, refused=False, **watch):
    try:
        train(algorithm, words, **watch)
    except InputError as error:
        if not refused:
            raise
        cpdir = parse(TRAIN[algorithm][1], words).cpdir
        refused_file(cpdir, int(os.environ["RANK"])).write_text(str(error))


def train(algorithm, words, gradients=False, overflow=None):
    fresh_state()
    module, settings_class = TRAIN[algorithm]
    settings = parse(settings_class, words)
    set_seed(settings.seed)
    draft = module.build(settings)
    watch = Gradients(gradients_file(settings.cpdir, int(os.environ["RANK"]))) if gradients else None
    watch = watch if overflow is None else Overflow(overflow)
    loop = module.start(settings, draft, module.build_dataset(settings, draft.config), observer=watch)
    loop.run()
    for tracker in loop.accelerator.trackers:  # end_training would also destroy the group that the next run needs
        tracker.finish()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in json.loads(Path(sys.argv[1]).read_text()):
        run(**each)
