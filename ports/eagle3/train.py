"""Train an Eagle3 draft: ``speculator train eagle3 ...`` or ``accelerate launch -m ports train eagle3 ...``.

``python -m ports.eagle3.train`` takes the prototype's command line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from torch import Tensor, nn

from ports import cli, flags
from ports.eagle3.config import load_draft_config
from ports.eagle3.model import build_draft
from ports.eagle3.objective import Eagle3Objective
from ports.training.data import Draw, RecordDataset
from ports.training.loop import Loop
from ports.training.observer import Observer
from ports.training.runs import (
    RecordSpec,
    build_source,
    finish,
    recorded_layers,
    start_training,
)
from ports.training.settings import Eagle3Settings
from ports.training.shards import full_tensor
from ports.training.validation import Measure
from ports.training.vocabulary import VOCABULARY_KEY, check_digest, load_vocabulary_map
from ports.verifier.logits import check_ends
from ports.verifier.weights import check_weights_present, reading_weights

GRAD_CLIP = 1.0


def build(settings: Eagle3Settings) -> Eagle3DraftModel:
    """The draft that ``settings`` describe, its verifier attached; every wrong size is refused here.

    Raises:
        InputError: names the file, the field, what was found and what was expected.
    """
    config = load_draft_config(
        settings.configpath,
        settings.basepath,
        settings.forward_num_total,
        settings.ttt_alignment,
        recorded_layers(settings),
    )
    layer = config.transformer_layer_config
    vocabulary = load_vocabulary_map(settings.t2d, settings.d2t, layer.vocab_size, config.draft_vocab_size)
    named = (settings.configpath, getattr(config, VOCABULARY_KEY, None))
    check_digest(vocabulary.digest, settings.t2d, (settings.tmpdir, settings.t2d.parent), named)
    setattr(config, VOCABULARY_KEY, vocabulary.digest)  # one that named no map names this from now on
    check_weights_present(settings.basepath)
    check_ends(settings.basepath)
    with reading_weights(settings.basepath):
        return build_draft(config, vocabulary, settings.ttt_alignment, settings.attn_implementation)


def build_dataset(
    settings: Eagle3Settings, config: Eagle3SpeculatorConfig, draw: Draw = torch.rand_like
) -> RecordDataset:
    """The samples that the settings name."""
    layer, layers = config.transformer_layer_config, config.eagle_aux_hidden_state_layer_ids
    return build_source(settings, RecordSpec("eagle3", layer.hidden_size, layer.vocab_size, layers), draw)


def start(
    settings: Eagle3Settings,
    draft: Eagle3DraftModel,
    dataset: RecordDataset,
    sampler: Iterable[int] | None = None,
    observer: Observer | None = None,
    measure: Measure | None = None,
) -> Loop:
    """A training run of ``draft`` on ``dataset``, ready to go; a ``sampler`` takes the place of shuffling."""
    objective = Eagle3Objective(
        draft,
        settings.forward_num_total,
        settings.ttt_alignment,
        settings.loss_implementation,
        settings.activation_checkpointing,
    )
    return start_training(settings, objective, dataset, clip_by_norm, "model", sampler, observer, measure)


def clip_by_norm(accelerator: Accelerator, module: nn.Module) -> Tensor | None:
    """Scale all gradients so that their global norm is at most 1."""
    norm: Tensor | None = accelerator.clip_grad_norm_(module.parameters(), GRAD_CLIP)
    return None if norm is None else full_tensor(torch.as_tensor(norm))


def execute(settings: Eagle3Settings, measure: Measure | None = None) -> None:
    """Build and train what ``settings`` describe."""
    draft = build(settings)
    finish(start(settings, draft, build_dataset(settings, draft.config), measure=measure))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point, of the same command as ``speculator train eagle3``; exit code 2 on bad input."""
    return flags.run(lambda: cli.load("train eagle3"), argv)


if __name__ == "__main__":
    sys.exit(main())
