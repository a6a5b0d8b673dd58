"""Train a Sprout draft: ``python -m sprout.train ...``, or by ``accelerate launch -m``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from accelerate import Accelerator
from torch import nn

from ports.errors import InputError
from ports.training.data import RecordDataset
from ports.training.draft_config import attach_verifier, check_sizes, load_layer
from ports.training.loop import Loop
from ports.training.observer import Observer
from ports.training.runs import RecordSpec, build_source, finish, run_command, start_training
from ports.training.settings import TrainingSettings
from ports.training.shards import full_tensor
from ports.verifier.config import verifier_config
from ports.verifier.weights import check_weights_present, reading_weights
from sprout.config import SproutConfig
from sprout.model import SproutModel
from sprout.objective import SproutObjective

GRAD_CLIP = 0.5


class SproutSettings(TrainingSettings):
    """Train a Sprout draft for a verifier; the result is a Speculators checkpoint."""


def build(settings: SproutSettings) -> SproutModel:
    """The draft that ``settings`` describe, its verifier attached. InputError for whatever does not fit."""
    layer = load_layer(settings.configpath, "sprout")
    check_sizes(settings.configpath, layer, verifier_config(settings.basepath))
    check_weights_present(settings.basepath)
    attached = attach_verifier("sprout", settings.basepath, settings.forward_num_total)
    config = SproutConfig(transformer_layer_config=layer, speculators_config=attached)
    draft = SproutModel(config)
    with reading_weights(settings.basepath):
        draft.load_verifier_weights()
    return draft


def build_objective(settings: SproutSettings, draft: SproutModel) -> SproutObjective:
    """The draft with its loss."""
    if settings.activation_checkpointing:
        raise InputError("command line", "--activation_checkpointing", True, "false: this draft keeps them")
    steps, alignment = settings.forward_num_total, settings.ttt_alignment
    return SproutObjective(draft, steps, alignment, settings.loss_implementation)


def build_dataset(settings: SproutSettings, config: SproutConfig) -> RecordDataset:
    """The samples that the settings name: HASS's records, which hold the verifier's last hidden state."""
    layer = config.transformer_layer_config
    return build_source(settings, RecordSpec("hass", layer.hidden_size, layer.vocab_size))


def start(
    settings: SproutSettings,
    draft: SproutModel,
    dataset: RecordDataset,
    sampler: Iterable[int] | None = None,
    observer: Observer | None = None,
) -> Loop:
    """A training run, ready to go; a ``sampler`` takes the place of shuffling."""
    return start_training(settings, build_objective(settings, draft), dataset, clip, "pass_", sampler, observer)


def clip(accelerator: Accelerator, module: nn.Module) -> float | None:
    """Scale all gradients so that their global norm is at most ``GRAD_CLIP``."""
    norm = accelerator.clip_grad_norm_(module.parameters(), GRAD_CLIP)
    return None if norm is None else float(full_tensor(norm))


def execute(settings: SproutSettings) -> None:
    """Build and train what ``settings`` describe."""
    draft = build(settings)
    finish(start(settings, draft, build_dataset(settings, draft.config)))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 2 on bad input, 75 when a signal stopped the run."""
    return run_command(SproutSettings, execute, argv)


if __name__ == "__main__":
    sys.exit(main())
