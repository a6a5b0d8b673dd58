"""Train a HASS draft: ``speculator train hass ...`` or ``accelerate launch -m ports train hass ...``.

``python -m ports.hass.train`` takes the prototype's command line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from ports import cli, flags
from ports.errors import InputError
from ports.hass.config import HassSpeculatorConfig, load_draft_config
from ports.hass.model import HassDraftModel
from ports.hass.objective import HassObjective
from ports.training.attention import attention_name
from ports.training.data import Draw, RecordDataset
from ports.training.loop import Loop
from ports.training.observer import Observer
from ports.training.runs import RecordSpec, build_source, finish, start_training
from ports.training.settings import HassSettings
from ports.training.shards import full_tensor, own_part
from ports.training.validation import Measure
from ports.verifier.logits import check_ends
from ports.verifier.weights import check_weights_present, reading_weights

GRAD_CLIP = 0.5


def build(settings: HassSettings) -> HassDraftModel:
    """The draft that ``settings`` describe, its verifier attached; every wrong size is refused here.

    Raises:
        InputError: names the file, the field, what was found and what was expected.
    """
    config = load_draft_config(
        settings.configpath, settings.basepath, settings.forward_num_total, settings.ttt_alignment
    )
    vocab_size = config.transformer_layer_config.vocab_size
    if settings.topk > vocab_size:
        raise InputError("command line", "--topk", settings.topk, f"at most {vocab_size}, the vocabulary")
    check_weights_present(settings.basepath)
    check_ends(settings.basepath)
    draft = HassDraftModel(config)
    config.transformer_layer_config._attn_implementation = attention_name(
        settings.ttt_alignment, settings.attn_implementation
    )
    with reading_weights(settings.basepath):
        draft.load_verifier_weights()
    return draft


def build_dataset(settings: HassSettings, config: HassSpeculatorConfig, draw: Draw = torch.rand_like) -> RecordDataset:
    """The samples that the settings name."""
    layer = config.transformer_layer_config
    return build_source(settings, RecordSpec("hass", layer.hidden_size, layer.vocab_size), draw)


def start(
    settings: HassSettings,
    draft: HassDraftModel,
    dataset: RecordDataset,
    sampler: Iterable[int] | None = None,
    observer: Observer | None = None,
    measure: Measure | None = None,
) -> Loop:
    """A training run of ``draft`` on ``dataset``, ready to go; a ``sampler`` takes the place of shuffling.

    Raises:
        InputError: launched with DeepSpeed, which clips by itself and not by value.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        found = DistributedType.DEEPSPEED.value
        raise InputError("accelerate launch", "distributed_type", found, "one process, --multi_gpu or --use_fsdp")
    objective = HassObjective(
        draft,
        settings.forward_num_total,
        settings.topk,
        settings.loss_implementation,
        settings.activation_checkpointing,
    )
    return start_training(settings, objective, dataset, clip_by_value, "state_", sampler, observer, measure)


def clip_by_value(accelerator: Accelerator, module: nn.Module) -> Tensor:
    """Clamp every gradient element to [-0.5, 0.5]; returns the global norm from before."""
    grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    norm = full_tensor(torch.nn.utils.get_total_norm(grads))
    if accelerator.distributed_type is not DistributedType.FSDP:
        accelerator.clip_grad_value_(module.parameters(), GRAD_CLIP)
    else:  # accelerate refuses, since it knows FSDP1 too; element by element the shards need not know each other
        for grad in grads:
            own_part(grad).clamp_(-GRAD_CLIP, GRAD_CLIP)
    return norm


def execute(settings: HassSettings, measure: Measure | None = None) -> None:
    """Build and train as ``settings`` say."""
    draft = build(settings)
    finish(start(settings, draft, build_dataset(settings, draft.config), measure=measure))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point, of the same command as ``speculator train hass``; exit code 2 on bad input."""
    return flags.run(lambda: cli.load("train hass"), argv)


if __name__ == "__main__":
    sys.exit(main())
