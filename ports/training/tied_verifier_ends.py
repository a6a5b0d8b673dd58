"""What drafts share that read and speak through the verifier's own tables.

Shapes: h hidden size, V the verifier's vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from speculators import SpeculatorModel
from speculators.utils.loading import load_model_layers
from torch import nn
from transformers import PretrainedConfig

from ports.errors import InputError
from ports.training.draft_config import attach_verifier

VERIFIER_WEIGHTS = ["embed_tokens.weight", "lm_head.weight"]


class TiedVerifierEnds(SpeculatorModel):
    """A draft between the verifier's embedding [V, h] and the verifier's head [V, h], both frozen and in no checkpoint.

    A subclass makes its own modules after ``super().__init__(config)`` and calls ``post_init()`` last.
    """

    _keys_to_ignore_on_save: ClassVar[list[str]] = VERIFIER_WEIGHTS
    _keys_to_ignore_on_load_missing: ClassVar[list[str]] = VERIFIER_WEIGHTS

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        layer = config.transformer_layer_config
        self.embed_tokens = nn.Embedding(layer.vocab_size, layer.hidden_size)
        self.lm_head = nn.Linear(layer.hidden_size, layer.vocab_size, bias=False)
        self._freeze()

    def load_verifier_weights(self) -> None:
        """Copy the verifier's embedding and full head; a verifier with tied weights has one tensor for both.

        Raises:
            RuntimeError: torch's, for a tensor of another shape than the draft's; see ``verifier.reading_weights``.
        """
        attached = self.config.speculators_config
        if attached is not None and attached.verifier.name_or_path is not None:
            weights = load_model_layers(VERIFIER_WEIGHTS, attached.verifier.name_or_path)
            self.load_state_dict({"lm_head.weight": weights["embed_tokens.weight"], **weights}, strict=False)
        self._freeze()

    def _freeze(self) -> None:
        self.embed_tokens.requires_grad_(False)
        self.lm_head.requires_grad_(False)

    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own initialisation. The verifier's weights are NaN until they are loaded."""
        if module is self.embed_tokens or module is self.lm_head:
            nn.init.constant_(module.weight, torch.nan)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    @classmethod
    def from_training_args(cls, verifier_config: PretrainedConfig, **kwargs: Any) -> Any:
        """A fresh draft with its verifier attached, from Speculators' training arguments.

        Args:
            verifier_config: the config of the decoder layers.
            kwargs: ``verifier_name_or_path`` and ``ttt_steps`` are needed, fields of the draft's config are read,
                others are not.

        Raises:
            InputError: a vocabulary map or layers with a sliding window, of which these drafts have none.
        """
        if kwargs.get("t2d") is not None:
            raise InputError("speculators train", "--draft-vocab-size", "a vocabulary map", "none: the head is whole")
        if "sliding_attention" in (getattr(verifier_config, "layer_types", None) or []):
            expected = "every layer, as in 0: this draft attends to all positions"
            raise InputError("speculators train", "--full-attention-indices", "layers with a window", expected)
        config_class = cls.config_class
        kind = config_class.model_fields["speculators_model_type"].default
        own = {name: value for name, value in kwargs.items() if name in config_class.model_fields}
        attached = attach_verifier(kind, kwargs["verifier_name_or_path"], kwargs["ttt_steps"])
        model = cls(config_class(**own, transformer_layer_config=verifier_config, speculators_config=attached))
        model.load_verifier_weights()
        return model

    @staticmethod
    def get_trainer_kwargs(**kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keywords of ``forward`` in training and in validation, from Speculators' training arguments.

        Raises:
            InputError: another loss than the KL divergence of equal steps.
        """
        for name, own in {"loss_fn": "kl_div", "ttt_step_loss_decay": 1.0}.items():
            if kwargs.get(name, own) != own:
                raise InputError("speculators train", f"--{name.replace('_', '-')}", kwargs[name], str(own))
        return {"ttt_steps": kwargs["ttt_steps"]}, {"ttt_steps": kwargs["ttt_steps"]}
